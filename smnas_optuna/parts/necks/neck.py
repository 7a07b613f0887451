"""Base classes of all necks, and of those that are pyramids."""

import re
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.levels import BACKBONE_LEVELS
from smnas_optuna.parts.part import INTEGER, Choices, Config, Part, Registry

if TYPE_CHECKING:
    import optuna  # building detectors needs no Optuna
    from typing_extensions import Self  # in typing since Python 3.11


@dataclass(frozen=True)
class Neck(Part):
    """A network that combines feature levels of a backbone: it has input levels Pa..Pb and output levels Pa..Pd.

    Its text is ``NAME([Pa-Pb:]Pa-Pd,c=CHANNELS)``. As in the paper, the input levels are omitted where they are all
    output levels that a backbone has: ``FPN(P2-P5,c=256)`` has the input levels P2-P4. A subclass with further fields
    has them in its text after the channels, see :meth:`parse`.

    Args:
        first: a, the first input and output level; 1 to 4.
        last_input: b, the last input level; a to 4.
        last_output: d, the last output level; b to 6.
        channels: Channels of every output level, at least 1.

    Raises:
        ValueError: An argument is out of range.
    """

    # Name of the neck in texts, and of its module in MMDetection's registry.
    NAME: ClassVar[str]

    first: int
    last_input: int
    last_output: int
    channels: int = 256

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if "NAME" in vars(cls) and "FORMS" not in vars(cls):
            cls.FORMS = (f"{cls.NAME}([Pa-Pb:]Pa-Pd,c=CHANNELS)",)
            cls.CHOICE_FORMS = (cls.NAME,)

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
    def parse(cls, text: str) -> "Self | None":
        """Parse ``NAME([Pa-Pb:]Pa-Pd,c=CHANNELS)``; None for another name, raises ValueError for wrong arguments."""
        name, _, arguments = text.partition("(")
        if name != cls.NAME:
            return None
        match = re.fullmatch(rf"(?:P(\d)-P(\d):)?P(\d)-P(\d),c=({INTEGER})\)", arguments.replace("_", ""))
        if match is None or match[1] not in (None, match[3]):
            raise ValueError(f"neck {text!r}: expected {cls.FORMS[0]}, such as {cls.NAME}(P1-P4,c=256)")
        last_output = int(match[4])
        last_input = int(match[2]) if match[2] else min(last_output, BACKBONE_LEVELS[-1])
        return cls(int(match[3]), last_input, last_output, int(match[5]))

    @property
    def place(self) -> tuple[str, tuple[int, ...]]:
        """More levels, in and out, and more channels are bigger within one kind of neck."""
        return self.choice, (BACKBONE_LEVELS[-1] - self.first, self.last_input, self.last_output, self.channels)

    @property
    def choice(self) -> str:
        """The name; levels and channels are the space's."""
        return self.NAME

    @classmethod
    def offers(cls, choice: str) -> bool:
        """Return whether a choice is the name of this neck."""
        return choice == cls.NAME

    @classmethod
    def suggest(cls, choice: str, trial: "optuna.trial.BaseTrial", space: Choices) -> "Self":
        """Let a trial choose the levels; the channels are the space's.

        The last output level has a parameter of its own for each last input level, since it must not be below it.
        """
        inputs = trial.suggest_categorical("fpn_inputs", space.fpn_inputs)
        outputs = trial.suggest_categorical(_last_output_name(inputs), _last_outputs(space, inputs))
        return cls(int(inputs[1]), int(inputs[-1]), int(outputs[1]), space.fpn_channels)

    def params(self, space: Choices) -> dict[str, tuple[Any, tuple[Any, ...]]]:
        """Return the levels; raises ValueError if the channels are not the space's."""
        if self.channels != space.fpn_channels:
            raise ValueError(f"{self} does not have fpn_channels {space.fpn_channels}")
        inputs = f"P{self.first}-P{self.last_input}"
        return {
            "fpn_inputs": (inputs, space.fpn_inputs),
            _last_output_name(inputs): (f"P{self.last_output}", _last_outputs(space, inputs)),
        }

    @classmethod
    def count(cls, choice: str, space: Choices) -> int:
        """Return the number of pairs of input and output levels; raises ValueError if inputs have no outputs."""
        for inputs in space.fpn_inputs:
            if not _last_outputs(space, inputs):
                raise ValueError(f"fpn_last_outputs: none is at or above the last input level of {inputs}")
        return sum(len(_last_outputs(space, inputs)) for inputs in space.fpn_inputs)

    @abstractmethod
    def config(self, channels: list[int], more_levels: Config, detector: Detector) -> Config:
        """Return the ``neck`` of an MMDetection config.

        Args:
            channels: Channels of each input level.
            more_levels: How the head wants levels above the backbone's to be made, as arguments of MMDetection's FPN.
            detector: Settings that all detectors of the search share.
        """


NECKS: Registry[Neck] = Registry("neck")
"""The families of necks."""

register_neck = NECKS.register


def _last_outputs(space: Choices, inputs: str) -> tuple[str, ...]:
    return tuple(level for level in space.fpn_last_outputs if level >= inputs[-2:])


def _last_output_name(inputs: str) -> str:
    return f"fpn_last_output_from_{inputs[-2:]}"
