"""Backbones of timm."""

from typing import Any

import pytest
import torch
from timm.models import register_model

from smnas_optuna.detector.counting import build_on_meta
from smnas_optuna.parts.backbones.backbone import BACKBONES
from smnas_optuna.parts.backbones.timm import TimmBackbone
from smnas_optuna.parts.detector import Detector


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("tf_efficientnet_lite0", [24, 40, 112, 320]),
        ("convnext_tiny", [96, 192, 384, 768]),
        ("mobilenetv4_conv_small", [32, 64, 96, 960]),
        ("hgnetv2_b0", [64, 256, 512, 1024]),
        ("regnety_008", [64, 128, 320, 768]),
        ("swin_tiny_patch4_window7_224", [96, 192, 384, 768]),
    ],
)
def test_levels_are_those_of_the_models_strides_whatever_the_size_of_the_image(name: str, channels: list[int]) -> None:
    backbone = BACKBONES.parse(f"timm:{name}")
    assert (str(backbone), backbone.family, backbone.code) == (f"timm:{name}", f"timm:{name}", None)
    assert backbone.channels((1, 2, 3, 4)) == channels
    model = build_on_meta(backbone.config((1, 2, 3, 4), Detector()))
    levels = model(torch.empty(1, 3, 192, 320, device="meta"))
    assert [tuple(level.shape) for level in levels] == [
        (1, each, 192 // stride, 320 // stride) for each, stride in zip(channels, (4, 8, 16, 32), strict=True)
    ]


def test_layers_after_the_last_level_are_not_built() -> None:
    for name in ("tf_efficientnet_lite0", "regnety_002", "mobilenetv4_conv_small_050"):
        backbone = TimmBackbone(name)
        sizes = [
            sum(one.numel() for one in build_on_meta(backbone.config(levels, Detector())).parameters())
            for levels in ((1,), (1, 2), (2, 3), (2, 3, 4))
        ]
        assert sizes == sorted(set(sizes))


def test_images_are_normalised_as_the_model_was_trained() -> None:
    assert TimmBackbone("tf_efficientnet_lite0").normalization == {
        "mean": [127.5] * 3,
        "std": [127.5] * 3,
        "bgr_to_rgb": True,
    }
    assert TimmBackbone("convnext_tiny").normalization["mean"] == pytest.approx([123.675, 116.28, 103.53])


@register_model
def without_maps(**settings: Any) -> torch.nn.Module:
    """A model that only classifies, in timm's registry."""
    if settings.get("features_only"):
        raise RuntimeError("no maps")
    return torch.nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timm:convnxt_tiny", r"backbone timm:convnxt_tiny: timm \S+ has no such model; did you mean convnext_tiny, "),
        ("timm:qqqqqqqqqqqqqqqqq", r"has no such model; timm.list_models\(\) lists all"),
        ("timm:vit_tiny_patch16_224", "has no level P1, with stride 4; its levels are P3"),
        ("timm:without_maps", "this model does not return feature maps: no maps"),
    ],
)
def test_a_model_that_cannot_be_used_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BACKBONES.parse(text).channels((1, 2, 3))


def test_frozen_statistics_stay_as_they_are_in_training() -> None:
    config = TimmBackbone("mobilenetv4_conv_small_050").config((2, 3), Detector()) | {"norm_eval": True}
    model = build_on_meta(config).train()
    assert model.training
    assert not any(module.training for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))


def test_another_release_of_timm_with_other_channels_is_refused() -> None:
    config = TimmBackbone("mobilenetv4_conv_small_050").config((2, 3), Detector()) | {"out_channels": [1, 2]}
    with pytest.raises(ValueError, match=r"has \[32, 48\] channels, expected \[1, 2\]"):
        build_on_meta(config)
