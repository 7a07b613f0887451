"""CSPNeXt."""

from typing import Any

import pytest
import torch

from smnas_optuna.detector.counting import build_on_meta
from smnas_optuna.parts.backbones.backbone import BACKBONES
from smnas_optuna.parts.backbones.cspnext import CSPNeXt
from smnas_optuna.parts.detector import Detector


@pytest.mark.parametrize("name", CSPNeXt.PUBLISHED)
def test_published_factors_have_a_name_and_others_are_written_out(name: str) -> None:
    backbone = BACKBONES.parse(name)
    assert isinstance(backbone, CSPNeXt)
    factors = f"CSPNeXt(d={backbone.deepen:g},w={backbone.widen:g})"
    assert str(backbone) == name
    assert BACKBONES.parse(factors) == backbone
    other = BACKBONES.parse("CSPNeXt( d = 0.5, w=0.25)")
    assert str(other) == "CSPNeXt(d=0.5,w=0.25)"
    assert BACKBONES.parse(str(other)) == other


def test_deeper_and_wider_is_bigger() -> None:
    places = [BACKBONES.parse(name).place for name in CSPNeXt.PUBLISHED]
    assert {kind for kind, _ in places} == {"CSPNeXt"}
    depths, widths = zip(*(capacity for _, capacity in places), strict=True)
    assert depths == (4, 6, 12, 18, 24)
    assert widths == (24, 32, 48, 64, 80)


def test_stages_after_the_last_level_are_not_built() -> None:
    backbone = CSPNeXt(0.167, 0.25)
    for levels in ((1,), (1, 2, 3), (2, 3, 4)):
        model: Any = build_on_meta(backbone.config(levels, Detector()))
        outputs = model(torch.empty(1, 3, 64, 96, device="meta"))
        assert [tuple(one.shape[1:]) for one in outputs] == [
            (channels, 64 >> level + 1, 96 >> level + 1)
            for level, channels in zip(levels, backbone.channels(levels), strict=True)
        ]
        assert len(model.layers) == levels[-1] + 1


def test_factors_out_of_range_are_refused() -> None:
    for factors in ((0, 1), (1, 0.06), (float("nan"), 1)):
        with pytest.raises(ValueError, match="expected a depth above 0 and a width of at least"):
            CSPNeXt(*factors)


def test_imagenet_weights_are_those_of_rtmdet() -> None:
    assert [name for name in CSPNeXt.PUBLISHED if BACKBONES.parse(name).imagenet_weights] == [
        "CSPNeXt-tiny",
        "CSPNeXt-s",
    ]
    config = BACKBONES.parse("CSPNeXt-s").config((2, 3, 4), Detector(), "cspnext-s.pth")
    assert config["init_cfg"] == {"type": "Pretrained", "checkpoint": "cspnext-s.pth", "prefix": "backbone."}
