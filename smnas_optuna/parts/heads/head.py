"""What heads of every family have in common."""

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.levels import Features
from smnas_optuna.parts.part import Config, Part
from smnas_optuna.parts.rpns.rpn import RPN

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing since Python 3.11


class Head(Part):
    """The part of a detector that finds objects, in feature levels or in the proposals of an RPN."""

    # What a reader is told that texts of the family look like.
    TEXTS: ClassVar[str]
    NEEDS_RPN: ClassVar[bool]
    # What a neck's levels above the backbone's are convolved from; False to pool them.
    EXTRA_CONVS: ClassVar[Literal["on_input", False]] = False

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> "Self | None":
        """Return the head that a text without blanks means; None where it means none of this family."""

    @abstractmethod
    def config(self, features: Features, rpn: RPN | None, classes: int, detector: Detector) -> Config:
        """Return what a config has besides preprocessor, backbone and neck, its ``type`` among it.

        Args:
            features: Levels that it works on.
            rpn: Where its proposals are from; None exactly where it needs none.
            classes: Number of object classes.
            detector: What all detectors of the search have in common.
        """
