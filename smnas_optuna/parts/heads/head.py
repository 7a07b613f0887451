"""Base class of all heads."""

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

    # The texts of this family, for error messages.
    TEXTS: ClassVar[str]
    NEEDS_RPN: ClassVar[bool]
    # The neck's ``add_extra_convs``: how it makes levels above the backbone's.
    EXTRA_CONVS: ClassVar[Literal["on_input", False]] = False

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> "Self | None":
        """Parse a text without spaces; None if it is no head of this family."""

    @abstractmethod
    def config(self, features: Features, rpn: RPN | None, classes: int, detector: Detector) -> Config:
        """Return all of a detector's config but preprocessor, backbone and neck; it includes the detector's ``type``.

        Args:
            features: Feature levels that the head uses.
            rpn: The RPN that proposes regions; None if and only if the head needs none.
            classes: Number of object classes, background not counted.
            detector: Settings that all detectors of the search share.
        """
