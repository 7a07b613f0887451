"""What RPNs and heads with anchors have in common: sizes of anchors, coded boxes, losses and samples.

Settings are those of MMDetection's own configs; see ``model_config.py``.
"""

from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.levels import stride_of
from smnas_optuna.parts.part import Config


def one_level_scales(detector: Detector, stride: int) -> list[float]:
    """Return scales with which one level alone has anchors of the sizes that a whole pyramid has on P1-P5.

    They are those of MMDetection's C4 models; on RetinaNet's P2-P6 the smallest anchors of each level have these sizes.
    """
    return [detector.anchor_scale * stride_of(level) / stride for level in range(1, 6)]


def box_coder(stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> Config:
    """Return the config of the coding of boxes as deltas of such spreads."""
    return {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": list(stds)}


def focal_loss() -> Config:
    """Return the config of the focal loss (Lin et al. 2017)."""
    return {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0}


def assigner(positive: float, negative: float, least: float, *, match_low_quality: bool) -> Config:
    """Return the config of what assigns objects to boxes, by their overlap.

    Args:
        positive: Least overlap of a positive box.
        negative: Overlap below which a box is a negative.
        least: Least overlap with which an object's best box is a positive.
        match_low_quality: Whether an object's best box is a positive at all where it overlaps less than ``positive``.
    """
    return {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": positive,
        "neg_iou_thr": negative,
        "min_pos_iou": least,
        "match_low_quality": match_low_quality,
        "ignore_iof_thr": -1,
    }


def random_sampler(number: int, positives: float, *, with_truth: bool) -> Config:
    """Return the config of what samples boxes to learn from.

    Args:
        number: Boxes per image.
        positives: Largest share of positives among them.
        with_truth: Whether the objects themselves are among them.
    """
    return {
        "type": "RandomSampler",
        "num": number,
        "pos_fraction": positives,
        "neg_pos_ub": -1,
        "add_gt_as_proposals": with_truth,
    }
