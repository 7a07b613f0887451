"""Config pieces that RPNs and heads share: anchor scales, box coders, losses, assigners and samplers.

The values are those of MMDetection's own configs; see ``model_config.py``.
"""

from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.levels import Features, stride_of
from smnas_optuna.parts.part import Config


def one_level_scales(detector: Detector, stride: int) -> list[float]:
    """Return anchor scales with which a single level has anchors of all the sizes that a pyramid has on P1-P5.

    MMDetection's C4 models have the same. On RetinaNet's P2-P6 the smallest anchors of each level have these sizes.

    Args:
        detector: Its ``anchor_scale`` is used.
        stride: Stride of the single level, in pixels.
    """
    return [detector.anchor_scale * stride_of(level) / stride for level in range(1, 6)]


def one_anchor(features: Features, detector: Detector) -> Config:
    """Return the config of anchors for heads that have one square anchor at each location.

    Args:
        features: Feature levels with anchors.
        detector: Its ``anchor_scale`` is used.
    """
    return {
        "type": "AnchorGenerator",
        "ratios": [1.0],
        "octave_base_scale": detector.anchor_scale,
        "scales_per_octave": 1,
        "strides": list(features.strides),
    }


def box_coder(stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> Config:
    """Return the config of a box coder whose deltas (x, y, width, height) have these standard deviations."""
    return {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": list(stds)}


def focal_loss() -> Config:
    """Return the config of the focal loss (Lin et al. 2017)."""
    return {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0}


def assigner(positive_iou: float, negative_iou: float, min_best_iou: float, *, match_low_quality: bool) -> Config:
    """Return the config of an assigner, which decides by IoU which boxes are positive and which are negative.

    Args:
        positive_iou: A box with at least this IoU is positive.
        negative_iou: A box with less is negative.
        min_best_iou: The least IoU with which the best box of an object can be positive by ``match_low_quality``.
        match_low_quality: Whether the best box of an object is positive even if its IoU is below ``positive_iou``.
    """
    return {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": positive_iou,
        "neg_iou_thr": negative_iou,
        "min_pos_iou": min_best_iou,
        "match_low_quality": match_low_quality,
        "ignore_iof_thr": -1,
    }


def random_sampler(size: int, positive_share: float, *, with_ground_truth: bool) -> Config:
    """Return the config of a sampler, which draws the boxes that the loss is computed on.

    Args:
        size: Boxes per image.
        positive_share: Largest share of positive boxes among them, 0 to 1.
        with_ground_truth: Whether the ground-truth boxes are sampled too.
    """
    return {
        "type": "RandomSampler",
        "num": size,
        "pos_fraction": positive_share,
        "neg_pos_ub": -1,
        "add_gt_as_proposals": with_ground_truth,
    }
