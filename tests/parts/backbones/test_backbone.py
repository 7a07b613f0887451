"""Published backbones: text, weights, channels, and what is trained."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.runner.checkpoint import get_torchvision_models

from smnas_optuna.detector.counting import build_on_meta
from smnas_optuna.parts.backbones.backbone import BACKBONES
from tests.parts.detectors import (
    backward,
    build,
    small_config,
)
from tests.parts.texts import CLASSIC_BACKBONES


@pytest.mark.parametrize("name", CLASSIC_BACKBONES)
def test_a_published_backbone_is_written_without_its_width(name: str) -> None:
    assert str(CLASSIC_BACKBONES[name](name)) == name
    assert BACKBONES.parse(name) == BACKBONES.parse(f"{name}(w=64)") == CLASSIC_BACKBONES[name](name, 64)
    assert BACKBONES.parse(f"{name}(w=16)") == CLASSIC_BACKBONES[name](name, 16)


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("basic", ("ResNet18", "ResNet34")),
        ("bottleneck", ("ResNet50", "ResNet101")),
        ("ResNeXt", ("ResNeXt50", "ResNeXt101")),
        ("inverted residual", ("MobileNetV2",)),
    ],
)
def test_backbones_of_one_block_differ_in_depth(family: str, names: tuple[str, ...]) -> None:
    published = [kind(name) for name, kind in CLASSIC_BACKBONES.items()]
    members = [backbone for backbone in published if backbone.block == family]
    assert tuple(member.name for member in sorted(members, key=lambda member: member.depth)) == names


@pytest.mark.parametrize("name", CLASSIC_BACKBONES)
def test_mmengine_knows_where_imagenet_weights_are(name: str) -> None:
    weights = CLASSIC_BACKBONES[name](name).imagenet_weights
    assert weights is not None
    source, _, key = weights.partition("://")
    catalogue = Config.fromfile(Path(inspect.getfile(Config)).parents[1] / "hub" / "openmmlab.json")
    assert key in (get_torchvision_models() if source == "torchvision" else catalogue)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(name=st.sampled_from(list(CLASSIC_BACKBONES)), width=st.integers(2, 130))
def test_a_neck_expects_the_channels_that_a_backbone_of_any_width_has(name: str, width: int) -> None:
    model: Any = build_on_meta(small_config(f"{name}(w={width}) FPN(P1-P5,c=8) RetinaNet")).eval()
    levels = model.backbone(torch.empty(1, 3, 64, 64, device="meta"))
    assert [level.size(1) for level in levels] == model.neck.in_channels


@pytest.mark.parametrize(
    ("whole", "truncated", "frozen"),
    [
        ("ResNet18(w=16)", "FPN(P1-P4,c=16) RPN 2FC", {"conv1", "bn1", "layer1"}),
        ("ResNeXt50(w=16)", "FPN(P2-P3:P2-P5,c=16) RetinaNet", {"conv1", "bn1", "layer1"}),
        ("ResNet18(w=16)", "RPN 2FC", {"conv1", "bn1", "layer1"}),
        ("MobileNetV2(w=16)", "FPN(P1-P2,c=16) RPN 2FC", {"conv1", "layer1"}),
    ],
)
def test_given_weights_are_loaded_and_the_early_layers_and_statistics_kept(
    whole: str, truncated: str, frozen: set[str], tmp_path: Path
) -> None:
    source = build(small_config(f"{whole} FPN(P1-P4,c=16) RPN 2FC")).backbone
    for tensor in source.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 0.5)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = build(small_config(f"{whole} {truncated}", weights=str(tmp_path / "weights.pth")))
    loaded = model.backbone.state_dict()
    assert loaded.keys() <= source.state_dict().keys()
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in loaded.items())
    backward(model)
    untrained = {name.split(".")[0] for name, one in model.backbone.named_parameters() if one.grad is None}
    assert untrained == frozen
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in model.backbone.state_dict().items())


def test_from_scratch_nothing_is_frozen_and_statistics_are_learnt() -> None:
    model = build(small_config("ResNet18(w=16) FPN(P1-P4,c=16) RPN 2FC"))
    before = {name: tensor.clone() for name, tensor in model.backbone.named_buffers()}
    backward(model)
    assert all(one.requires_grad for one in model.parameters())
    assert not any(torch.equal(tensor, before[name]) for name, tensor in model.backbone.named_buffers())
