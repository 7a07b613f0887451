"""Heads of a detector config, with how they learn and predict: RetinaNet's, or an RPN and RCNN stages.

Settings are those of MMDetection's own configs; see ``config.py``.
"""

import math
from typing import Any

from smnas_optuna.parts.architecture import RPN, RCNNHead, stride_of
from smnas_optuna.recipe.settings import Detector

Config = dict[str, Any]

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

# Boxes of all classes that one call of non-maximum suppression takes; above it, mmcv calls it once per class. Its own
# 10,000 are fewer than guided anchoring's 300 proposals of 80 classes.
_MOST_BOXES_AT_ONCE = 30_000


def retinanet(
    one_level: bool, strides: list[int], features: int, classes: int, detector: Detector, layers: Config
) -> Config:
    """Return RetinaNet's head and settings: the config's ``bbox_head``, ``train_cfg`` and ``test_cfg``.

    Args:
        one_level: The head works on a backbone's level alone, and has anchors of the sizes of a pyramid's levels.
        strides: Of the levels that it works on, in pixels.
        features: Channels of those levels.
        classes: Number of object classes.
        detector: What all detectors of the search have in common.
        layers: ``conv_cfg`` and ``norm_cfg``, or nothing for MMDetection's own choice.
    """
    sizes: Config = {"octave_base_scale": detector.anchor_scale / 2, "scales_per_octave": 3}
    if one_level:
        sizes = {"scales": _one_level_scales(detector, strides[0])}
    return {
        "bbox_head": {
            "type": "RetinaHead",
            "num_classes": classes,
            "in_channels": features,
            # With the 1024 that ResNet50 has there, the branches would be three times ResNet50 itself.
            "feat_channels": min(features, 256) if one_level else features,
            "stacked_convs": detector.retina_convs,
            "anchor_generator": {"type": "AnchorGenerator", "ratios": [0.5, 1.0, 2.0], "strides": strides, **sizes},
            "bbox_coder": _box_coder(),
            "loss_cls": _focal_loss(),
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
            **layers,
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


def two_stage(
    head: RCNNHead,
    rpn: RPN,
    *,
    one_level: bool,
    strides: list[int],
    roi_strides: list[int],
    features: int,
    classes: int,
    detector: Detector,
    layers: Config,
) -> Config:
    """Return RPN and RCNN head and their settings, and the config's ``type``, which says how many stages there are.

    Args:
        head: How many stages.
        rpn: Guided or not.
        one_level: As in :func:`retinanet`.
        strides: Of the levels that proposals are made on, in pixels.
        roi_strides: Of the levels that regions are cut from.
        features: As in :func:`retinanet`.
        classes: As in :func:`retinanet`.
        detector: As in :func:`retinanet`.
        layers: As in :func:`retinanet`; fully connected layers have no normalisation.
    """
    guided = rpn.guided_anchoring
    if guided:
        rpn_head = _ga_rpn_head(strides, features, detector, layers)
    else:
        rpn_head = _rpn_head(one_level, strides, features, detector, layers)
    return {
        "type": "FasterRCNN" if head.stages == 1 else "CascadeRCNN",
        "rpn_head": rpn_head,
        "roi_head": _roi_head(head, guided, roi_strides, features, classes, detector),
        "train_cfg": _train_settings(head, one_level, guided, detector),
        "test_cfg": _test_settings(one_level, guided, detector),
    }


def _box_coder(stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> Config:
    return {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": list(stds)}


def _focal_loss() -> Config:
    return {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0}


def _one_level_scales(detector: Detector, stride: int) -> list[float]:
    """Return scales with which one level alone has anchors of the sizes that a whole pyramid has on P1-P5.

    They are those of MMDetection's C4 models; on RetinaNet's P2-P6 the smallest anchors of each level have these sizes.
    """
    return [detector.anchor_scale * stride_of(level) / stride for level in range(1, 6)]


def _rpn_head(one_level: bool, strides: list[int], features: int, detector: Detector, layers: Config) -> Config:
    return {
        "type": "NormalizedRPNHead" if layers else "ExactRPNHead",
        "in_channels": features,
        "feat_channels": features,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "scales": _one_level_scales(detector, strides[0]) if one_level else [detector.anchor_scale],
            "ratios": [0.5, 1.0, 2.0],
            "strides": strides,
        },
        "bbox_coder": _box_coder(),
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        **layers,
    }


def _ga_rpn_head(strides: list[int], features: int, detector: Detector, layers: Config) -> Config:
    scale = detector.anchor_scale
    return {
        "type": "NormalizedGARPNHead" if layers else "LenientGARPNHead",
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
        **layers,
    }


def _roi_head(
    head: RCNNHead, guided: bool, strides: list[int], features: int, classes: int, detector: Detector
) -> Config:
    extractor = {
        "type": "ExactRoIExtractor",
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
            "nms": {"type": "nms", "iou_threshold": 0.5, **({"split_thr": _MOST_BOXES_AT_ONCE} if guided else {})},
            "max_per_img": detector.max_detections,
        },
    }
