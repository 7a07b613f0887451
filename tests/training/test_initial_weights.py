"""Which weights a training starts from, with EfficientNet-Lite0's real ones from a package."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from mmdet.registry import MODELS

import smnas_optuna.detector.layers  # noqa: F401  # provides mmcv's operators
from smnas_optuna.detector.pretrained import Pretrained, pretrained_for
from smnas_optuna.detector.zoo import trained_on_coco
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.model_config import model_config
from smnas_optuna.training import initial_weights
from smnas_optuna.training.initial_weights import check_reachable, choose_weights, describe_weights, find_weights
from smnas_optuna.training.job import AutomaticWeights, WeightsRequest

LITE = Architecture.parse("64x64 timm:tf_efficientnet_lite0 FPN(P2-P4,c=16) ATSS")
RTMDET = Architecture.parse("64x64 CSPNeXt-tiny CSPNeXtPAFPN(P2-P4,c=96) RTMDet")
OTHER_HEAD = Architecture.parse("64x64 CSPNeXt-tiny CSPNeXtPAFPN(P2-P4,c=96) ATSS")
RESNET = Architecture.parse("64x64 ResNet18 FPN(P2-P4,c=16) ATSS")
NOWHERE = ("download.openmmlab.com", "download.pytorch.org", "huggingface.co")


@pytest.fixture(scope="module")
def lite(lite_weights: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(lite_weights / "tf_efficientnet_lite0.pth", weights_only=True)
    return state


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take care that no weights are found that a developer has downloaded before."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    former = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "torch"))
    yield
    torch.hub.set_dir(former)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def built(architecture: Architecture, pretrained: Pretrained | None) -> Any:
    config = model_config(
        architecture,
        classes=3,
        detector=Detector(),
        weights=pretrained.checkpoint if pretrained else None,
        of_detector=pretrained is not None and pretrained.of_detector,
    )
    torch.manual_seed(0)
    model = MODELS.build({**config, "_scope_": "mmdet"})
    model.init_weights()
    return model


def test_every_detector_that_mmdetection_has_trained_on_coco_has_the_address_of_its_weights() -> None:
    found = dict(trained_on_coco())
    assert len(found) == 15
    assert all(url.startswith("https://") and url.endswith(".pth") for url in found.values())
    assert sum("rtmdet_s" in url for url in found.values()) == 1


def test_detectors_come_before_classifiers_and_those_that_share_most_parts_first() -> None:
    def names(text: str, detector: Detector = Detector()) -> list[str]:  # noqa: B008  # frozen
        architecture = Architecture.parse(text)
        return [each.source for each in pretrained_for(architecture.backbone, detector, architecture)]

    first, second, *_, last = names("800x600 ResNet50 FPN(P2-P6,c=256) GFL")
    assert first.startswith("COCO (gfl_r50")
    assert "r50" in second
    assert last == "ImageNet"
    assert names("800x600 ResNet50 PAFPN(P1-P5,c=256) RPN 2FC")[0].startswith("COCO (faster_rcnn_r50_pafpn")
    assert names("800x600 ResNet34 FPN(P2-P6,c=256) GFL") == ["ImageNet"]
    assert names("800x600 ResNet50(w=16) FPN(P2-P6,c=256) GFL") == []
    assert names("800x600 basicblock_64_1-21-21-12 FPN(P2-P5,c=256) GFL") == []
    # Layers that published weights were not trained with.
    assert names("800x600 ResNet50 FPN(P2-P6,c=256) GFL", Detector(norm="GN")) == []
    assert names("800x600 timm:convnext_tiny FPN(P2-P5,c=256) GFL", Detector(norm="GN")) == ["ImageNet"]


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_timm_model_starts_from_a_file_in_the_folder(
    suffix: str, lite: dict[str, torch.Tensor], folder: Path
) -> None:
    file = folder / f"tf_efficientnet_lite0.{suffix}"
    if suffix == "pth":
        torch.save(lite, file)
    else:
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in lite.items()}, file)
    for given in (folder, file):
        weights, warning = find_weights(AutomaticWeights(given), [LITE.backbone], Detector())
        assert (weights.unreachable, warning) == ((), "")
        chosen = choose_weights(weights, LITE, Detector())
        assert chosen == Pretrained(f"timm://tf_efficientnet_lite0:{file}", f"file {file.name}")
        assert chosen.file == file
    model = built(LITE, chosen).backbone.model
    assert torch.equal(model.conv_stem.weight, lite["conv_stem.weight"])
    assert torch.equal(model.state_dict()["blocks.6.0.bn3.running_var"], lite["blocks.6.0.bn3.running_var"])


def test_pretrained_batch_statistics_stay_as_they_are(lite: dict[str, torch.Tensor], folder: Path) -> None:
    torch.save(lite, folder / "tf_efficientnet_lite0.pth")
    chosen = choose_weights(AutomaticWeights(folder), LITE, Detector())
    model = built(LITE, chosen).train()
    model.backbone(torch.rand(2, 3, 64, 64))
    assert torch.equal(model.backbone.model.bn1.running_mean, lite["bn1.running_mean"])


def test_a_detector_trained_on_coco_gives_everything_that_fits(folder: Path) -> None:
    (url,) = [url for architecture, url in trained_on_coco() if "rtmdet_tiny" in url]
    torch.manual_seed(1)
    trained = built(RTMDET, None)
    wider = MODELS.build({**model_config(RTMDET, classes=80, detector=Detector()), "_scope_": "mmdet"}).state_dict()
    # A checkpoint of COCO's 80 classes, whose layers that predict classes do not fit.
    state = {name: wider[name] if "rtm_cls" in name else tensor for name, tensor in trained.state_dict().items()}
    torch.save({"state_dict": state, "meta": {}}, folder / url.rpartition("/")[2])
    weights = AutomaticWeights(folder, NOWHERE)
    for architecture in (RTMDET, OTHER_HEAD):
        chosen = choose_weights(weights, architecture, Detector())
        assert chosen is not None
        assert chosen.of_detector
        model, scratch = built(architecture, chosen), built(architecture, None)
        loaded = model.state_dict()
        for name, tensor in state.items():
            if name in loaded and loaded[name].shape == tensor.shape:
                assert torch.equal(loaded[name], tensor), name
        # What does not fit is initialised as without any weights, so predicts few objects at first.
        name = "bbox_head.rtm_cls.0.bias" if architecture is RTMDET else "bbox_head.atss_cls.bias"
        assert torch.equal(loaded[name], scratch.state_dict()[name])
        assert float(loaded[name].max()) < -4


def test_weights_that_do_not_fit_are_refused_with_the_first_name(lite: dict[str, torch.Tensor], folder: Path) -> None:
    damaged = dict(lite)
    del damaged["blocks.0.0.conv_dw.weight"]
    torch.save(damaged, folder / "tf_efficientnet_lite0.pth")
    with pytest.raises(UserError) as error:
        find_weights(AutomaticWeights(folder), [LITE.backbone], Detector())
    assert str(error.value) == (
        f"--weights-dir {folder}: file tf_efficientnet_lite0.pth for timm:tf_efficientnet_lite0 does not fit: expected "
        "blocks.0.0.conv_dw.weight of shape (32, 1, 3, 3), found None"
    )
    (url,) = [url for _, url in trained_on_coco() if "rtmdet_tiny" in url]
    torch.save({"state_dict": lite}, folder / url.rpartition("/")[2])
    with pytest.raises(UserError, match=r"for CSPNeXt-tiny does not fit: expected stem\.0\.conv\.weight of shape"):
        find_weights(AutomaticWeights(folder), [RTMDET.backbone], Detector())


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


def test_a_file_that_would_run_code_is_not_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    torch.save({"conv_stem.weight": Evil()}, folder / "tf_efficientnet_lite0.pth")
    with pytest.raises(UserError, match=r"tf_efficientnet_lite0\.pth for .* cannot be loaded"):
        find_weights(AutomaticWeights(folder), [LITE.backbone], Detector())
    assert not (folder / "harm").exists()


def test_an_absent_folder_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--weights-dir .*/absent: no such folder on this machine"):
        find_weights(AutomaticWeights(tmp_path / "absent"), [LITE.backbone], Detector())


def test_hosts_that_cannot_be_reached_are_named_once_and_training_starts_from_scratch(
    lite: dict[str, torch.Tensor], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answers(url: str) -> bool:
        asked.append(url)
        return False

    # The real thing depends on the network of whoever runs the tests.
    monkeypatch.setattr(initial_weights, "_answers", answers)
    torch.save(lite, folder / "tf_efficientnet_lite0.pth")
    backbones = [each.backbone for each in (LITE, RESNET, RTMDET)]
    weights, warning = find_weights(AutomaticWeights(folder), backbones, Detector())
    assert len(asked) == len({url.split("/")[2] for url in asked})
    assert warning == (
        f"training.weights: {', '.join(weights.unreachable)} cannot be reached, so ResNet18, CSPNeXt-tiny start "
        "from scratch; --weights-dir names a folder with weights"
    )
    described: list[str] = []
    request = WeightsRequest((LITE, RESNET, RTMDET), Detector(), weights)
    describe_weights(request, described.append)
    assert described == ["file tf_efficientnet_lite0.pth", "scratch", "scratch"]
    assert choose_weights(weights, RESNET, Detector()) is None


def test_a_host_that_does_not_exist_cannot_be_reached() -> None:
    assert not initial_weights._answers("https://host.invalid/weights.pth")
    assert not initial_weights._answers("http://127.0.0.1:9/weights.pth")


def test_weights_that_were_downloaded_before_are_used_without_a_network(folder: Path) -> None:
    (url,) = [url for _, url in trained_on_coco() if "rtmdet_tiny" in url]
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    cache.mkdir(parents=True)
    torch.save({"state_dict": built(RTMDET, None).state_dict()}, cache / url.rpartition("/")[2])
    chosen = choose_weights(AutomaticWeights(None, NOWHERE), RTMDET, Detector())
    assert chosen is not None
    assert (chosen.checkpoint, chosen.file) == (url, None)


def test_a_required_weight_whose_host_cannot_be_reached_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initial_weights, "_answers", lambda _: False)
    with pytest.raises(UserError) as error:
        check_reachable("weights: timm://convnext_tiny", "timm://convnext_tiny", "a file")
    assert str(error.value) == (
        "weights: timm://convnext_tiny cannot be loaded (huggingface.co cannot be reached); expected it to be "
        "reachable, or a file"
    )
    check_reachable("weights: resnet.pth", "resnet.pth", "a file")
    monkeypatch.setattr(initial_weights, "_answers", lambda _: True)
    check_reachable("weights: timm://convnext_tiny", "timm://convnext_tiny", "a file")
