"""Base class of all heads."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.levels import Features
from smnas_optuna.parts.part import Config, Part, Registry
from smnas_optuna.parts.rpns.rpn import RPN

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing since Python 3.11

    from smnas_optuna.parts.architecture import Architecture


class Head(Part):
    """The part of a detector that finds objects, in feature levels or in the proposals of an RPN."""

    NEEDS_RPN: ClassVar[bool] = False
    # How the neck makes levels above the backbone's, as arguments of MMDetection's FPN; by default it pools its last.
    MORE_LEVELS: ClassVar[Config] = {"add_extra_convs": False}

    def conflict(self, architecture: "Architecture") -> str | None:
        """Say if the architecture lacks an RPN that the head needs, or has one that it cannot use."""
        if self.NEEDS_RPN and architecture.rpn is None:
            return f"{self} needs an RPN"
        if not self.NEEDS_RPN and architecture.rpn is not None:
            return f"{self} has no RPN"
        return None

    @abstractmethod
    def config(self, features: Features, rpn: RPN | None, classes: int, detector: Detector) -> Config:
        """Return all of a detector's config but preprocessor, backbone and neck; it includes the detector's ``type``.

        Args:
            features: Feature levels that the head uses.
            rpn: The RPN that proposes regions; None if and only if the head needs none.
            classes: Number of object classes, background not counted.
            detector: Settings that all detectors of the search share.
        """


class NamedHead(Head):
    """A head without arguments in its text; a subclass has a ``NAME``."""

    NAME: ClassVar[str]

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        cls.FORMS = (cls.NAME,)

    def __str__(self) -> str:
        return self.NAME

    @classmethod
    def parse(cls, text: str) -> "Self | None":
        """Parse ``NAME``; None for any other text."""
        return cls() if text == cls.NAME else None

    @property
    def place(self) -> tuple[str, tuple[int, ...]]:
        """All heads of one name are equal."""
        return self.NAME, ()


HEADS: Registry[Head] = Registry("head")
"""The families of heads."""

register_head = HEADS.register


def branch_channels(features: Features) -> int:
    """Return the channels of the branches of a one-stage head: those of the neck.

    With ResNet50's 1024 channels at a single level, the branches would cost three times ResNet50 itself.
    """
    return min(features.channels, 256) if features.one_level else features.channels


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
