"""From an Architecture to the model part of an MMDetection config.

Settings that an architecture does not choose are those of MMDetection's own configs for Faster R-CNN, Cascade R-CNN,
RetinaNet and Guided Anchoring, so that the classic detectors come out as MMDetection ships them. One thing differs: a
Cascade R-CNN's RPN learns as a Faster R-CNN's does, so that two architectures whose texts share a part share that part.
"""

from typing import Any

from smnas_optuna.detector.heads import retinanet, two_stage
from smnas_optuna.parts.architecture import (
    FPN,
    Architecture,
    Backbone,
    BackboneCode,
    ClassicBackbone,
    RetinaNetHead,
    stride_of,
)
from smnas_optuna.recipe.settings import Detector

Config = dict[str, Any]

# The level that the heads work on where there is no neck; see StructuralSpace.
SINGLE_LEVEL = 3

# Channels of levels P1..P4 at the published width, before an expansion by 4 in bottleneck and ResNeXt blocks.
_RESNET_CHANNELS = (64, 128, 256, 512)
_MOBILENET_CHANNELS = (24, 32, 96, 320)
# MobileNetV2's layers that end at strides 4, 8, 16 and 32.
_MOBILENET_LAYERS = (1, 2, 4, 6)

# ImageNet's mean and standard deviation of red, green and blue, 0 to 255.
NORMALIZATION: Config = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}

_IMAGENET_WEIGHTS = {
    "ResNet18": "torchvision://resnet18",
    "ResNet34": "torchvision://resnet34",
    "ResNet50": "torchvision://resnet50",
    "ResNet101": "torchvision://resnet101",
    "ResNeXt50": "open-mmlab://resnext50_32x4d",
    "ResNeXt101": "open-mmlab://resnext101_32x4d",
    "MobileNetV2": "open-mmlab://mmdet/mobilenet_v2",
}


def custom_imports(architecture: Architecture) -> Config:
    """Return a config's ``custom_imports``: what registers the modules of an architecture that MMDetection lacks."""
    modules = ["smnas_optuna.detector.layers"]
    added = type(architecture.neck).__module__
    if architecture.neck is not None and not added.startswith("smnas_optuna."):
        modules.append(added)
    return {"imports": modules, "allow_failed_imports": False}


def weights_of(backbone: ClassicBackbone) -> str:
    """Return where MMDetection fetches a published backbone's ImageNet weights."""
    return _IMAGENET_WEIGHTS[backbone.name]


def model_config(architecture: Architecture, *, classes: int, detector: Detector, weights: str | None = None) -> Config:
    """Return the ``model`` of an MMDetection config for an architecture.

    Args:
        architecture: What to build; the base channels of a backbone code have to be even.
        classes: Number of object classes, background not counted.
        detector: What all detectors of the search have in common.
        weights: Checkpoint for the backbone, a URI or a file; None to start from random weights.
    """
    neck = architecture.neck
    levels = neck.input_levels if neck else (SINGLE_LEVEL,)
    backbone, channels = backbone_config(architecture.backbone, levels, detector, weights)
    layers = _layers(detector)
    model: Config = {
        "type": "RetinaNet",
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            **NORMALIZATION,
            "bgr_to_rgb": True,
            "pad_size_divisor": 32,
        },
        "backbone": backbone,
        "neck": _fpn(neck, channels, architecture, layers) if neck else None,
    }
    strides = [stride_of(level) for level in (neck.output_levels if neck else levels)]
    features = neck.channels if neck else channels[0]
    if isinstance(architecture.head, RetinaNetHead):
        return model | retinanet(neck is None, strides, features, classes, detector, layers)
    assert architecture.rpn is not None
    return model | two_stage(
        architecture.head,
        architecture.rpn,
        one_level=neck is None,
        strides=strides,
        # Levels made by pooling another are there to propose, as in FPN (Lin et al. 2017); RoIs are cut from others.
        roi_strides=strides[: len(levels)],
        features=features,
        classes=classes,
        detector=detector,
        layers=layers,
    )


def _norm(detector: Detector) -> Config:
    if detector.norm == "GN":
        return {"type": "DividingGroupNorm", "num_groups": 32, "requires_grad": True}
    return {"type": detector.norm, "requires_grad": True}


def _conv(detector: Detector) -> Config | None:
    return {"type": "ConvWS"} if detector.weight_standardization else None


def _layers(detector: Detector) -> Config:
    """Return convolution and normalisation of neck and heads, which have no normalisation in the classic detectors."""
    return {"conv_cfg": _conv(detector), "norm_cfg": _norm(detector)} if detector.norm == "GN" else {}


def backbone_config(
    backbone: Backbone, levels: tuple[int, ...], detector: Detector, weights: str | None = None
) -> tuple[Config, list[int]]:
    """Return a backbone that stops after its last used level, and the channels of the levels it gives."""
    config: Config = {
        "conv_cfg": _conv(detector),
        "norm_cfg": _norm(detector),
        "init_cfg": {"type": "Pretrained", "checkpoint": weights} if weights else None,
    }
    # Statistics and early layers stay as pre-trained; from scratch there is nothing to keep.
    config |= {"frozen_stages": 1 if weights else -1, "norm_eval": weights is not None}
    if isinstance(backbone, BackboneCode):
        expansion = 4 if backbone.block in ("bottleneck", "Xbottleneck") else 1
        indices = [level - 1 for level in levels]
        config |= {"type": "SearchedBackbone", "code": str(backbone), "out_indices": indices}
        return config, [backbone.planes[level - 1][-1] * expansion for level in levels]
    scale = backbone.width / ClassicBackbone.PUBLISHED_WIDTH
    if backbone.name == "MobileNetV2":
        channels = [_divisible_by_8(_MOBILENET_CHANNELS[level - 1] * scale) for level in levels]
        indices = [_MOBILENET_LAYERS[level - 1] for level in levels]
        config |= {"type": "TruncatedMobileNetV2", "widen_factor": scale, "out_indices": indices}
        return config, channels
    expansion = 1 if backbone.block == "basic" else 4
    config |= {
        "type": "ResNet",
        "depth": backbone.depth,
        "num_stages": levels[-1],
        "strides": (1, 2, 2, 2)[: levels[-1]],
        "dilations": (1, 1, 1, 1)[: levels[-1]],
        "out_indices": [level - 1 for level in levels],
        "base_channels": backbone.width,
        "stem_channels": backbone.width,
        "style": "pytorch",
    }
    if backbone.block == "ResNeXt":
        # 32x4d at width 64; narrower networks keep 4 channels per group at the first stage.
        config |= {"type": "ResNeXt", "groups": backbone.width // 2, "base_width": 4}
    return config, [_RESNET_CHANNELS[level - 1] * backbone.width // 64 * expansion for level in levels]


def _divisible_by_8(channels: float) -> int:
    """Round as MobileNetV2 does: to a multiple of 8, and never by more than a tenth down."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _fpn(neck: FPN, channels: list[int], architecture: Architecture, layers: Config) -> Config:
    one_stage = isinstance(architecture.head, RetinaNetHead)
    return {
        "type": neck.NAME,
        "in_channels": channels,
        "out_channels": neck.channels,
        "num_outs": len(neck.output_levels),
        # RetinaNet convolves its extra levels out of the backbone, two-stage detectors pool them.
        "add_extra_convs": "on_input" if one_stage else False,
        **layers,
    }
