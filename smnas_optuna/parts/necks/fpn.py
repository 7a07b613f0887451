"""Feature pyramid networks (Lin et al. 2017), and the registry of other necks with the same arguments."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.levels import BACKBONE_LEVELS
from smnas_optuna.parts.part import INTEGER, Config, Part

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing since Python 3.11

_Neck = TypeVar("_Neck", bound="FPN")


@dataclass(frozen=True)
class FPN(Part):
    """Feature pyramid network with the input levels Pa..Pb and the output levels Pa..Pd: ``FPN(P2-P3:P2-P5,c=256)``.

    As in the paper, the text omits the input levels where they are all output levels that a backbone has:
    ``FPN(P2-P5,c=256)`` has the input levels P2-P4.

    Another kind of pyramid is a subclass with a ``NAME`` of its own, see :func:`register_neck`.

    Args:
        first: a, the first input and output level; 1 to 4.
        last_input: b, the last input level; a to 4.
        last_output: d, the last output level; b to 6.
        channels: Channels of every output level, at least 1.

    Raises:
        ValueError: An argument is out of range.
    """

    # Name of the neck in texts and recipes, and of its module in MMDetection's registry.
    NAME: ClassVar[str] = "FPN"

    first: int
    last_input: int
    last_output: int
    channels: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last_input <= 4 or not self.last_input <= self.last_output <= 6:
            raise ValueError(f"neck {self}: expected input levels Pa-Pb, output levels Pa-Pd, a <= b <= 4, b <= d <= 6")
        if self.channels < 1:
            raise ValueError(f"neck {self}: {self.channels} is not a positive number of channels")

    @property
    def input_levels(self) -> tuple[int, ...]:
        """Numbers of the input levels, which the backbone outputs."""
        return tuple(range(self.first, self.last_input + 1))

    @property
    def output_levels(self) -> tuple[int, ...]:
        """Numbers of the output levels."""
        return tuple(range(self.first, self.last_output + 1))

    def __str__(self) -> str:
        outputs = f"P{self.first}-P{self.last_output}"
        has_default_inputs = self.last_input == min(self.last_output, BACKBONE_LEVELS[-1])
        inputs = "" if has_default_inputs else f"P{self.first}-P{self.last_input}:"
        return f"{self.NAME}({inputs}{outputs},c={self.channels})"

    @classmethod
    def parse(cls, text: str) -> "Self":
        """Parse ``NAME([Pa-Pb:]Pa-Pd,c=CHANNELS)``; raises ValueError."""
        levels = rf"\((?:P(\d)-P(\d):)?P(\d)-P(\d),c=({INTEGER})\)"
        match = re.fullmatch(re.escape(cls.NAME) + levels, re.sub(r"\s|_", "", text))
        if match is None or match[1] not in (None, match[3]):
            raise ValueError(
                f"neck {text!r}: expected {cls.NAME}([Pa-Pb:]Pa-Pd,c=CHANNELS), such as {cls.NAME}(P1-P5,c=256)"
            )
        last_output = int(match[4])
        last_input = int(match[2]) if match[2] else min(last_output, BACKBONE_LEVELS[-1])
        return cls(int(match[3]), last_input, last_output, int(match[5]))

    @property
    def place(self) -> tuple[str, tuple[int, ...]]:
        """More levels, in and out, and more channels are bigger within one kind of pyramid."""
        return self.NAME, (BACKBONE_LEVELS[-1] - self.first, self.last_input, self.last_output, self.channels)

    def config(self, channels: list[int], extra_convs: Literal["on_input", False], detector: Detector) -> Config:
        """Return the ``neck`` of an MMDetection config.

        Args:
            channels: Channels of each input level.
            extra_convs: How to make levels above the backbone's: ``on_input`` convolves the backbone's last level,
                False pools the neck's last.
            detector: Settings that all detectors of the search share.
        """
        return {
            "type": self.NAME,
            "in_channels": channels,
            "out_channels": self.channels,
            "num_outs": len(self.output_levels),
            "add_extra_convs": extra_convs,
            **detector.layers,
        }


NECKS: dict[str, type[FPN]] = {FPN.NAME: FPN}
"""All registered necks by name."""


def register_neck(neck: type[_Neck]) -> type[_Neck]:
    """Register a kind of feature pyramid, a subclass of :class:`FPN`, for use in texts and recipes; a class decorator.

    MMDetection's registry must have a module of the same name with FPN's arguments (``in_channels``,
    ``out_channels``, ``num_outs``, ``add_extra_convs``, ``conv_cfg``, ``norm_cfg``). A recipe that lists the Python
    module of the subclass in ``imports`` can then list the name in the ``necks`` of its space.

    Args:
        neck: The subclass; its ``NAME`` consists of letters, digits and ``-``, and begins with a letter.

    Raises:
        ValueError: The name has other characters, or another class has it already.
    """
    if not re.fullmatch("[A-Za-z][A-Za-z0-9-]*", neck.NAME):
        raise ValueError(f"neck {neck.NAME!r}: expected a name of letters, digits and '-'")
    known = NECKS.setdefault(neck.NAME, neck)
    if known.__qualname__ != neck.__qualname__:
        raise ValueError(f"neck {neck.NAME!r}: {known.__module__}.{known.__qualname__} has this name already")
    return neck


def parse_neck(text: str) -> FPN:
    """Parse the text of any registered neck, such as ``FPN(P1-P5,c=256)``; raises ValueError."""
    return NECKS.get(text.partition("(")[0].strip(), FPN).parse(text)
