"""ResNets and ResNeXts, compared with those of torchvision."""

import pytest
import torch
import torchvision

from smnas_optuna.detector.counting import build_on_meta
from tests.parts.detectors import classic_model, shapes

FASTER = "FPN(P1-P5,c=256) RPN 2FC"


@pytest.mark.parametrize(
    ("name", "depth"), [("ResNet18", 18), ("ResNet34", 34), ("ResNet50", 50), ("ResNet101", 101), ("ResNeXt50", 50)]
)
def test_torchvisions_weights_fit_the_backbones(name: str, depth: int) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnext{depth}_32x4d" if "X" in name else f"resnet{depth}")()
    ours = build_on_meta(classic_model(f"{name} {FASTER}"))
    expected = {layer: shape for layer, shape in shapes(theirs).items() if not layer.startswith("fc.")}
    assert shapes(ours.get_submodule("backbone")) == expected
