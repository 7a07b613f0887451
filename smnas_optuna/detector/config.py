"""From an Architecture to the model part of an MMDetection config.

Settings that an architecture does not choose are those of MMDetection's own configs for Faster R-CNN, Cascade R-CNN,
RetinaNet and Guided Anchoring, so that the classic detectors come out as MMDetection ships them. One thing differs: a
Cascade R-CNN's RPN learns as a Faster R-CNN's does, so that two architectures whose texts share a part share that part.
"""

import math
from typing import Any

from smnas_optuna.architecture import (
    FPN,
    Architecture,
    ClassicBackbone,
    RCNNHead,
    RetinaNetHead,
    stride_of,
)
from smnas_optuna.recipe import Detector

Config = dict[str, Any]

# The level that the heads work on where there is no neck; see StructuralSpace.
SINGLE_LEVEL = 3

# Channels of levels P1..P4 at the published width, before an expansion by 4 in bottleneck and ResNeXt blocks.
_RESNET_CHANNELS = (64, 128, 256, 512)
_MOBILENET_CHANNELS = (24, 32, 96, 320)
# MobileNetV2's layers that end at strides 4, 8, 16 and 32.
_MOBILENET_LAYERS = (1, 2, 4, 6)

_IMAGENET_WEIGHTS = {
    "ResNet18": "torchvision://resnet18",
    "ResNet34": "torchvision://resnet34",
    "ResNet50": "torchvision://resnet50",
    "ResNet101": "torchvision://resnet101",
    "ResNeXt50": "open-mmlab://resnext50_32x4d",
    "ResNeXt101": "open-mmlab://resnext101_32x4d",
    "MobileNetV2": "open-mmlab://mmdet/mobilenet_v2",
}

# Of stage i of a cascade: overlap that makes a proposal a positive, loss weight, spread of the box deltas. They are
# those of Cascade R-CNN (Cai & Vasconcelos 2018), whose Table 4 has the fourth overlap; the fourth weight and spread,
# which it does not tell, go on as the others do.
_CASCADE_OVERLAPS = (0.5, 0.6, 0.7, 0.75)
_CASCADE_WEIGHTS = (1.0, 0.5, 0.25, 0.125)
_CASCADE_DELTA_STDS = (
    (0.1, 0.1, 0.2, 0.2),
    (0.05, 0.05, 0.1, 0.1),
    (0.033, 0.033, 0.067, 0.067),
    (0.025, 0.025, 0.05, 0.05),
)


def weights_of(backbone: ClassicBackbone) -> str:
    """Return where MMDetection fetches a published backbone's ImageNet weights."""
    return _IMAGENET_WEIGHTS[backbone.name]


def model_config(architecture: Architecture, *, classes: int, detector: Detector, weights: str | None = None) -> Config:
    """Return the ``model`` of an MMDetection config for an architecture.

    Args:
        architecture: With a published backbone.
        classes: Number of object classes, background not counted.
        detector: What all detectors of the search have in common.
        weights: Checkpoint for the backbone, a URI or a file; None to start from random weights.
    """
    neck = architecture.neck
    levels = neck.input_levels if neck else (SINGLE_LEVEL,)
    backbone, channels = _backbone(architecture.backbone, levels, detector, weights)
    model: Config = {
        "type": "RetinaNet",
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
            "bgr_to_rgb": True,
            "pad_size_divisor": 32,
        },
        "backbone": backbone,
        "neck": _fpn(neck, channels, architecture, detector) if neck else None,
    }
    if neck:
        levels, features = neck.output_levels, neck.channels
    else:
        features = channels[0]
    strides = [stride_of(level) for level in levels]
    if isinstance(architecture.head, RetinaNetHead):
        return model | _retinanet(neck is None, strides, features, classes, detector)
    assert architecture.rpn is not None
    guided = architecture.rpn.guided_anchoring
    model["type"] = "FasterRCNN" if architecture.head.stages == 1 else "CascadeRCNN"
    if guided:
        model["rpn_head"] = _ga_rpn_head(strides, features, detector)
    else:
        model["rpn_head"] = _rpn_head(neck is None, strides, features, detector)
    # Levels made by pooling another are there to propose, as in FPN (Lin et al. 2017); RoIs are cut from the others.
    roi_strides = strides[: len(neck.input_levels)] if neck else strides
    model["roi_head"] = _roi_head(architecture.head, guided, roi_strides, features, classes, detector)
    model["train_cfg"] = _train_settings(architecture.head, neck is None, guided, detector)
    model["test_cfg"] = _test_settings(neck is None, guided, detector)
    return model


def _norm(detector: Detector) -> Config:
    if detector.norm == "GN":
        return {"type": "DividingGroupNorm", "num_groups": 32, "requires_grad": True}
    return {"type": detector.norm, "requires_grad": True}


def _conv(detector: Detector) -> Config | None:
    return {"type": "ConvWS"} if detector.weight_standardization else None


def _head_layers(detector: Detector) -> Config:
    """Return convolution and normalisation of neck and RetinaNet head, which have none in the classic detectors."""
    return {"conv_cfg": _conv(detector), "norm_cfg": _norm(detector)} if detector.norm == "GN" else {}


def _backbone(
    backbone: object, levels: tuple[int, ...], detector: Detector, weights: str | None
) -> tuple[Config, list[int]]:
    """Return a backbone that stops after its last used level, and the channels of the levels it gives."""
    if not isinstance(backbone, ClassicBackbone):
        raise TypeError(f"{backbone}: searched backbones belong to the modular stage")
    scale = backbone.width / ClassicBackbone.PUBLISHED_WIDTH
    config: Config = {
        "conv_cfg": _conv(detector),
        "norm_cfg": _norm(detector),
        # Statistics and early layers stay as pre-trained; from scratch there is nothing to keep.
        "norm_eval": weights is not None,
        "init_cfg": {"type": "Pretrained", "checkpoint": weights} if weights else None,
    }
    if backbone.name == "MobileNetV2":
        channels = [_divisible_by_8(_MOBILENET_CHANNELS[level - 1] * scale) for level in levels]
        indices = [_MOBILENET_LAYERS[level - 1] for level in levels]
        config |= {"type": "TruncatedMobileNetV2", "widen_factor": scale, "out_indices": indices}
        config["frozen_stages"] = 1 if weights else -1
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
        "frozen_stages": 1 if weights else -1,
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


def _fpn(neck: FPN, channels: list[int], architecture: Architecture, detector: Detector) -> Config:
    one_stage = isinstance(architecture.head, RetinaNetHead)
    return {
        "type": "FPN",
        "in_channels": channels,
        "out_channels": neck.channels,
        "num_outs": len(neck.output_levels),
        # RetinaNet convolves its extra levels out of the backbone, two-stage detectors pool them.
        "add_extra_convs": "on_input" if one_stage else False,
        **_head_layers(detector),
    }


def _box_coder(stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> Config:
    return {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": list(stds)}


def _focal_loss() -> Config:
    return {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0}


def _retinanet(one_level: bool, strides: list[int], features: int, classes: int, detector: Detector) -> Config:
    sizes: Config = {"octave_base_scale": detector.anchor_scale / 2, "scales_per_octave": 3}
    if one_level:
        sizes = {"scales": _one_level_scales(detector)}
    return {
        "bbox_head": {
            "type": "RetinaHead",
            "num_classes": classes,
            "in_channels": features,
            "feat_channels": min(features, 256),
            "stacked_convs": detector.retina_convs,
            "anchor_generator": {"type": "AnchorGenerator", "ratios": [0.5, 1.0, 2.0], "strides": strides, **sizes},
            "bbox_coder": _box_coder(),
            "loss_cls": _focal_loss(),
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
            **_head_layers(detector),
        },
        "train_cfg": {
            "assigner": _assigner(0.5, 0.4, 0.0, match_low_quality=True),
            "sampler": {"type": "PseudoSampler"},
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
        "test_cfg": {
            "nms_pre": 1000,
            "min_bbox_size": 0,
            "score_thr": 0.05,
            "nms": {"type": "nms", "iou_threshold": 0.5},
            "max_per_img": detector.max_detections,
        },
    }


def _one_level_scales(detector: Detector) -> list[float]:
    """Return scales with which P3 alone has anchors of the sizes that a whole pyramid has on P1-P5.

    They are those of MMDetection's C4 models; on RetinaNet's P2-P6 the smallest anchors of each level have these sizes.
    """
    return [detector.anchor_scale * stride_of(level) / stride_of(SINGLE_LEVEL) for level in range(1, 6)]


def _rpn_head(one_level: bool, strides: list[int], features: int, detector: Detector) -> Config:
    return {
        "type": "RPNHead",
        "in_channels": features,
        "feat_channels": features,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "scales": _one_level_scales(detector) if one_level else [detector.anchor_scale],
            "ratios": [0.5, 1.0, 2.0],
            "strides": strides,
        },
        "bbox_coder": _box_coder(),
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
    }


def _ga_rpn_head(strides: list[int], features: int, detector: Detector) -> Config:
    scale = detector.anchor_scale
    return {
        "type": "LenientGARPNHead",
        "in_channels": features,
        "feat_channels": features,
        "deform_groups": math.gcd(4, features),
        "approx_anchor_generator": {
            "type": "AnchorGenerator",
            "octave_base_scale": scale,
            "scales_per_octave": 3,
            "ratios": [0.5, 1.0, 2.0],
            "strides": strides,
        },
        "square_anchor_generator": {
            "type": "AnchorGenerator",
            "ratios": [1.0],
            "scales": [scale],
            "strides": strides,
        },
        "anchor_coder": _box_coder((0.07, 0.07, 0.14, 0.14)),
        "bbox_coder": _box_coder((0.07, 0.07, 0.11, 0.11)),
        "loc_filter_thr": 0.01,
        "loss_loc": _focal_loss(),
        "loss_shape": {"type": "BoundedIoULoss", "beta": 0.2, "loss_weight": 1.0},
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
        "loss_bbox": {"type": "SmoothL1Loss", "beta": 1.0, "loss_weight": 1.0},
    }


def _roi_head(
    head: RCNNHead, guided: bool, strides: list[int], features: int, classes: int, detector: Detector
) -> Config:
    extractor = {
        "type": "SingleRoIExtractor",
        "roi_layer": {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0},
        "out_channels": features,
        "featmap_strides": strides,
        # 56 pixels at stride 4, as FPN's equation 1 has it for any first level.
        "finest_scale": 14 * strides[0],
    }
    cascade = head.stages > 1
    # Guided anchors are better placed, so the single stage refines less (Wang et al. 2019).
    first = 1 if guided and not cascade else 0
    stages = [
        {
            "type": "Shared2FCBBoxHead",
            "in_channels": features,
            "fc_out_channels": detector.fc_channels,
            "roi_feat_size": 7,
            "num_classes": classes,
            "bbox_coder": _box_coder(stds),
            "reg_class_agnostic": cascade,
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
            "loss_bbox": {"type": "SmoothL1Loss", "beta": 1.0, "loss_weight": 1.0}
            if cascade
            else {"type": "L1Loss", "loss_weight": 1.0},
        }
        for stds in _CASCADE_DELTA_STDS[first : first + head.stages]
    ]
    if not cascade:
        return {"type": "StandardRoIHead", "bbox_roi_extractor": extractor, "bbox_head": stages[0]}
    return {
        "type": "CascadeRoIHead",
        "num_stages": head.stages,
        "stage_loss_weights": list(_CASCADE_WEIGHTS[: head.stages]),
        "bbox_roi_extractor": extractor,
        "bbox_head": stages,
    }


def _assigner(positive: float, negative: float, least: float, *, match_low_quality: bool) -> Config:
    return {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": positive,
        "neg_iou_thr": negative,
        "min_pos_iou": least,
        "match_low_quality": match_low_quality,
        "ignore_iof_thr": -1,
    }


def _random_sampler(number: int, positives: float, *, with_truth: bool) -> Config:
    return {
        "type": "RandomSampler",
        "num": number,
        "pos_fraction": positives,
        "neg_pos_ub": -1,
        "add_gt_as_proposals": with_truth,
    }


def _train_settings(head: RCNNHead, one_level: bool, guided: bool, detector: Detector) -> Config:
    rpn: Config = {
        "assigner": _assigner(0.7, 0.3, 0.3, match_low_quality=True),
        "sampler": _random_sampler(256, 0.5, with_truth=False),
        "allowed_border": -1,
        "pos_weight": -1,
        "debug": False,
    }
    proposal: Config = {
        "nms_pre": (12 if one_level else 2) * detector.proposals,
        "max_per_img": (2 if one_level or head.stages > 1 else 1) * detector.proposals,
        "nms": {"type": "nms", "iou_threshold": 0.7},
        "min_bbox_size": 0,
    }
    samples = detector.roi_samples
    overlaps = _CASCADE_OVERLAPS[: head.stages]
    if guided:
        # Guided anchors start from squares of one size per level. Where one level has to find objects of every size,
        # each object has to teach the shape of its best square, however unlike.
        least = 0.0 if one_level else 0.3
        ga_assigner = _assigner(0.7, 0.3, least, match_low_quality=True) | {"type": "ApproxMaxIoUAssigner"}
        rpn |= {
            "ga_assigner": ga_assigner,
            "ga_sampler": _random_sampler(256, 0.5, with_truth=False),
            "center_ratio": 0.2,
            "ignore_ratio": 0.5,
        }
        proposal |= {"nms_post": detector.proposals, "max_per_img": _guided_proposals(detector)}
        samples = max(1, samples // 2)
        if head.stages == 1:
            overlaps = (0.6,)
    rcnn = [
        {
            "assigner": _assigner(overlap, overlap, overlap, match_low_quality=False),
            "sampler": _random_sampler(samples, 0.25, with_truth=True),
            "pos_weight": -1,
            "debug": False,
        }
        for overlap in overlaps
    ]
    return {"rpn": rpn, "rpn_proposal": proposal, "rcnn": rcnn[0] if head.stages == 1 else rcnn}


def _guided_proposals(detector: Detector) -> int:
    return min(300, max(1, detector.proposals // 2))


def _test_settings(one_level: bool, guided: bool, detector: Detector) -> Config:
    rpn: Config = {
        # Of each level: a single one gives as many as MMDetection's C4 models take.
        "nms_pre": (6 if one_level else 1) * detector.proposals,
        "max_per_img": detector.proposals,
        "nms": {"type": "nms", "iou_threshold": 0.7},
        "min_bbox_size": 0,
    }
    if guided:
        rpn |= {"nms_post": detector.proposals, "max_per_img": _guided_proposals(detector)}
    return {
        "rpn": rpn,
        "rcnn": {
            # Fewer but better proposals score lower, so guided anchoring keeps more of them.
            "score_thr": 0.001 if guided else 0.05,
            "nms": {"type": "nms", "iou_threshold": 0.5},
            "max_per_img": detector.max_detections,
        },
    }
