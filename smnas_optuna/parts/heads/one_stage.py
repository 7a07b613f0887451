"""Config pieces that one-stage heads share; the values are those of MMDetection's own configs."""

from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.levels import Features
from smnas_optuna.parts.optimization import Optimization
from smnas_optuna.parts.part import Config

ONE_STAGE = Optimization(optimizer="SGD", lr=0.01, base_batch_size=16, momentum=0.9, weight_decay=0.0001)
"""How MMDetection trains RetinaNet, FCOS, ATSS and GFL: with half the learning rate of two-stage detectors."""


def branches(features: Features, classes: int, detector: Detector) -> Config:
    """Return the sizes of a one-stage head's branches, which are as wide as the neck.

    With ResNet50's 1024 channels at a single level, the branches would cost three times ResNet50 itself; there they
    have at most 256.

    Args:
        features: Feature levels that the head uses.
        classes: Number of object classes, background not counted.
        detector: Its ``head_convs`` is used.
    """
    return {
        "num_classes": classes,
        "in_channels": features.channels,
        "feat_channels": min(features.channels, 256) if features.one_level else features.channels,
        "stacked_convs": detector.head_convs,
    }


def dense_train_config(assigner: Config, **more: Config) -> Config:
    """Return the ``train_cfg`` of a one-stage head.

    Args:
        assigner: Config of the assigner, which decides which locations find an object.
        more: Further entries.
    """
    return {"assigner": assigner, **more, "allowed_border": -1, "pos_weight": -1, "debug": False}


def dense_test_config(detector: Detector, *, score: float = 0.05, iou: float, candidates: int = 1000) -> Config:
    """Return the ``test_cfg`` of a one-stage head.

    Args:
        detector: Its ``max_detections`` is used.
        score: Lowest score of a detection.
        iou: IoU above which non-maximum suppression removes a box.
        candidates: Largest number of boxes per level that non-maximum suppression gets.
    """
    return {
        "nms_pre": candidates,
        "min_bbox_size": 0,
        "score_thr": score,
        "nms": {"type": "nms", "iou_threshold": iou},
        "max_per_img": detector.max_detections,
    }
