"""Base class of all heads."""

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.levels import Features
from smnas_optuna.parts.part import Config, Part, Registry
from smnas_optuna.parts.rpns.rpn import RPN

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing since Python 3.11

    from smnas_optuna.parts.architecture import Architecture


# Regular expression of a width in a text, such as 0.5.
WIDTH = r"\d+(?:\.\d+)?"


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

    def with_width(self, width: float) -> "Self | None":
        """Return this head with inner layers of another width; None if the width of its family cannot be changed.

        Args:
            width: Width relative to the published head, above 0.
        """
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


HEADS: Registry[Head] = Registry("head")
"""The families of heads."""

register_head = HEADS.register


def check_width(head: Head, width: float) -> None:
    """Raise ValueError unless a width is above 0."""
    if not width > 0:
        raise ValueError(f"head {head}: found the width {width:g}, expected more than 0")


def scaled_channels(channels: int, width: float) -> int:
    """Return a number of channels at another width, rounded to a multiple of 8; at width 1 it is the same."""
    return channels if width == 1 else max(8, 8 * round(channels * width / 8))


def capacity_of(width: float) -> int:
    """Return a width as an entry of a place in the partial order."""
    return round(1000 * width)
