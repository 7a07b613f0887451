"""Base class of one-stage heads, and config pieces that they share; the values are those of MMDetection's configs."""

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.heads.head import WIDTH, Head, capacity_of, check_width, scaled_channels
from smnas_optuna.parts.levels import Features
from smnas_optuna.parts.optimization import Optimization
from smnas_optuna.parts.part import Config, NamedPart

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing since Python 3.11

ONE_STAGE = Optimization(optimizer="SGD", lr=0.01, base_batch_size=16, momentum=0.9, weight_decay=0.0001)
"""Half the learning rate of two-stage detectors, with which MMDetection trains RetinaNet, FCOS, ATSS and GFL."""


@dataclass(frozen=True)
class OneStageHead(NamedPart, Head):
    """A one-stage head: ``NAME``, or with branches that are half as wide ``NAME(w=0.5)``.

    Args:
        width: Width of the branches relative to the published ones, which are as wide as the neck; above 0.

    Raises:
        ValueError: The width is not above 0.
    """

    OPTIMIZATION: ClassVar[Optimization] = ONE_STAGE

    width: float = 1.0

    def __post_init__(self) -> None:
        check_width(self, self.width)

    def __str__(self) -> str:
        return self.NAME if self.width == 1 else f"{self.NAME}(w={self.width:g})"

    @classmethod
    def parse(cls, text: str) -> "Self | None":
        """Parse ``NAME`` or ``NAME(w=WIDTH)``; None for any other text."""
        match = re.fullmatch(rf"{re.escape(cls.NAME)}(?:\(w=({WIDTH})\))?", text)
        return cls(float(match[1] or 1)) if match else None

    @property
    def place(self) -> tuple[str, tuple[int, ...]]:
        """Wider branches are bigger."""
        return self.NAME, (capacity_of(self.width),)

    def with_width(self, width: float) -> "Self":
        """Return this head with branches of another width."""
        return replace(self, width=width)

    def _branches(self, features: Features, classes: int, detector: Detector) -> Config:
        """Return the sizes of the head's branches.

        With ResNet50's 1024 channels at a single level, the branches would cost three times ResNet50 itself; there they
        have at most 256.

        Args:
            features: Feature levels that the head uses.
            classes: Number of object classes, background not counted.
            detector: Its ``head_convs`` is used.
        """
        published = min(features.channels, 256) if features.one_level else features.channels
        return {
            "num_classes": classes,
            "in_channels": features.channels,
            "feat_channels": scaled_channels(published, self.width),
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
