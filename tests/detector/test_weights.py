"""torchvision's published weights in the backbones that they fit."""

from pathlib import Path

import pytest
import torch
import torchvision
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import get_torchvision_models

import smnas_optuna.detector.layers  # noqa: F401  # provides mmcv's operators
from smnas_optuna.detector.weights import check_weights
from smnas_optuna.errors import UserError
from smnas_optuna.parts.backbones.resnet import ResNet
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.levels import BACKBONE_LEVELS

CLASSIFIER = {"fc.weight", "fc.bias"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch keeps what it has fetched, so that nothing is."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def published(name: str) -> dict[str, torch.Tensor]:
    """Return random weights of torchvision's network, with statistics as if it had been trained."""
    weights: dict[str, torch.Tensor] = getattr(torchvision.models, name)(weights=None).state_dict()
    for key, tensor in weights.items():
        if key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            tensor.copy_(torch.rand(tensor.shape) * 100)
    return weights


def initial_state(name: str, checkpoint: str) -> dict[str, torch.Tensor]:
    """Return the initial tensors of a backbone in training."""
    init_default_scope("mmdet")
    config = ResNet(name).config(BACKBONE_LEVELS, Detector(norm="BN"), checkpoint)
    backbone = MODELS.build(Config(config).to_dict())
    backbone.init_weights()
    tensors: dict[str, torch.Tensor] = backbone.state_dict()
    return tensors


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50"])
def test_torchvisions_weights_are_found_by_their_name(name: str, hub: Path) -> None:
    weights = published(name.lower())
    torch.save(weights, hub / get_torchvision_models()[name.lower()].rpartition("/")[2])
    initial = initial_state(name, f"torchvision://{name.lower()}")
    assert set(initial) == set(weights) - CLASSIFIER
    assert all(torch.equal(tensor, weights[key]) for key, tensor in initial.items())


@pytest.mark.parametrize(
    ("name", "theirs", "prefix"),
    [("ResNet18", "resnet18", ""), ("ResNeXt50", "resnext50_32x4d", ""), ("ResNet18", "resnet18", "module.")],
)
def test_torchvisions_weights_are_taken_from_a_file(name: str, theirs: str, prefix: str, tmp_path: Path) -> None:
    weights = published(theirs)
    file = str(tmp_path / "weights.pth")
    torch.save({prefix + key: tensor for key, tensor in weights.items()}, file)
    config = ResNet(name).config(BACKBONE_LEVELS, Detector(norm="BN"))
    check_weights("--weights", file, config, otherwise="none")
    initial = initial_state(name, file)
    assert set(initial) == set(weights) - CLASSIFIER
    assert all(torch.equal(tensor, weights[key]) for key, tensor in initial.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv1.weight": torch.zeros(64, 3, 3, 3)}, r"expected conv1\.weight of shape \(64, 3, 7, 7\), found \(64, "),
        ({"layer1.weight": torch.zeros(1)}, r"does not fit: expected conv1\.weight of .*, found None"),
        ([1, 2], r"does not fit: expected conv1\.weight of .*, found None"),
        ({"conv1.weight": "x"}, r"does not fit: expected conv1\.weight of .*, found None"),
        (ResNet("ResNet18"), r"cannot be loaded \(Weights only load failed.*, or none"),
    ],
)
def test_weights_that_do_not_fit_the_backbone_are_a_user_error(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    config = ResNet("ResNet18").config(BACKBONE_LEVELS, Detector(norm="BN"))
    with pytest.raises(UserError, match=message):
        check_weights("--weights weights.pth", str(tmp_path / "weights.pth"), config, otherwise="none")
