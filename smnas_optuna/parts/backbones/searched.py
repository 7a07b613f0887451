"""The backbone code that stage two searches (SM-NAS, section 3.2.2)."""

import re
from dataclasses import dataclass
from typing import ClassVar

from smnas_optuna.parts.backbones.backbone import Backbone, register_backbone, training_config
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.part import INTEGER, Config

_PUBLISHED_BASE = 64
_STAGES_OF_50 = ("111", "2111", "211111", "211")
_STAGES_OF_101 = ("111", "2111", "2" + 22 * "1", "211")
RESNET_STAGES = {
    "basicblock": {18: ("11", "21", "21", "21"), 34: _STAGES_OF_50},
    "bottleneck": {50: _STAGES_OF_50, 101: _STAGES_OF_101},
    "Xbottleneck": {50: _STAGES_OF_50, 101: _STAGES_OF_101},
}
"""Stages of the published ResNets and ResNeXts as digits of a code, by kind of block and depth."""


@register_backbone
@dataclass(frozen=True)
class BackboneCode(Backbone):
    """A searched backbone in the paper's code (section 3.2.2), ``basicblock_56_12-11111-211-1112``.

    A searched network begins with two convolutions of stride 2. The codes of the published ResNets and ResNeXts, at
    base 64, mean those networks themselves, whose stem is one 7x7 convolution and max-pooling.

    Args:
        block: Kind of block, one of ``BLOCKS``.
        base: Channels (planes) before the first doubling, at least 1.
        stages: Four strings for the stages at stride 4, 8, 16 and 32, with a digit per block: 1 keeps the channels, 2
            doubles them.

    Raises:
        ValueError: An argument is out of range.
    """

    BLOCKS: ClassVar[tuple[str, ...]] = ("basicblock", "bottleneck", "Xbottleneck", "MBblock")
    FORMS: ClassVar[tuple[str, ...]] = ("BLOCK_BASE_S2-S3-S4-S5",)
    CHOICE_FORMS: ClassVar[tuple[str, ...] | None] = ()

    block: str
    base: int
    stages: tuple[str, str, str, str]

    def __post_init__(self) -> None:
        if self.block not in self.BLOCKS:
            raise ValueError(f"backbone code {self}: block {self.block!r} is none of {', '.join(self.BLOCKS)}")
        if self.base < 1:
            raise ValueError(f"backbone code {self}: base {self.base} is not a positive number of channels")
        if len(self.stages) != 4 or not all(re.fullmatch("[12]+", stage) for stage in self.stages):
            raise ValueError(f"backbone code {self}: expected four stages of digits 1 and 2, separated by '-'")

    def __str__(self) -> str:
        return f"{self.block}_{self.base}_{'-'.join(self.stages)}"

    @classmethod
    def compact(cls, text: str) -> str:
        """Replace the spaces that the paper's tables have in codes by underscores."""
        return re.sub(rf"\b({'|'.join(cls.BLOCKS)})[ _]+(\d+)[ _]+(?=\d+-)", r"\1_\2_", text)

    @classmethod
    def offers(cls, choice: str) -> bool:
        """Return False: stage one does not search codes."""
        return False

    @property
    def planes(self) -> tuple[tuple[int, ...], ...]:
        """Channels of each block, stage by stage; bottleneck and ResNeXt blocks output four times as many."""
        widths, width = [], self.base
        for stage in self.stages:
            row = []
            for digit in stage:
                width *= int(digit)
                row.append(width)
            widths.append(tuple(row))
        return tuple(widths)

    @property
    def is_published(self) -> bool:
        """Whether this code means a published ResNet or ResNeXt itself, not a searched network."""
        return self.base == _PUBLISHED_BASE and self.stages in RESNET_STAGES.get(self.block, {}).values()

    @property
    def family(self) -> str:
        """Kind of block."""
        return self.block

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(map(len, self.stages))

    @property
    def width(self) -> int:
        """Base channels."""
        return self.base

    @property
    def code(self) -> "BackboneCode":
        """This code itself."""
        return self

    @property
    def place(self) -> tuple[str, tuple[int, ...]]:
        """Raises TypeError: only the modular space orders backbone codes."""
        raise TypeError(f"{self} has no place in the structural order")

    def channels(self, levels: tuple[int, ...]) -> list[int]:
        """Return the channels of feature levels; see :class:`~smnas_optuna.parts.backbones.backbone.Backbone`."""
        expansion = 4 if self.block in ("bottleneck", "Xbottleneck") else 1
        return [self.planes[level - 1][-1] * expansion for level in levels]

    def config(self, levels: tuple[int, ...], detector: Detector, weights: str | None = None) -> Config:
        """Return the config; see :class:`~smnas_optuna.parts.backbones.backbone.Backbone`.

        A network can only be built from it if the base is even.
        """
        return training_config(detector, weights) | {
            "type": "SearchedBackbone",
            "code": str(self),
            "out_indices": [level - 1 for level in levels],
        }

    @classmethod
    def parse(cls, text: str) -> "BackboneCode | None":
        """Parse ``BLOCK_BASE_S2-S3-S4-S5``; None if the text does not begin with a kind of block.

        Raises:
            ValueError: The text is not a code; the message has the position of the first wrong character, from 1.
        """
        return cls.read(text) if re.match("|".join(cls.BLOCKS), text) else None

    @classmethod
    def read(cls, text: str) -> "BackboneCode":
        """Parse a code, in which spaces may replace the underscores; raises ValueError for any other text."""
        patterns = (
            ("|".join(cls.BLOCKS), f"a block: {', '.join(cls.BLOCKS)}"),
            (r"[ _]+", "'_'"),
            (INTEGER, "the base channels"),
            (r"[ _]+", "'_'"),
            *[("[12]+", "a digit 1 or 2 per block"), ("-", "'-' before the next of four stages")] * 3,
            ("[12]+", "a digit 1 or 2 per block"),
            (r"\s*\Z", "the end after four stages of digits 1 and 2"),
        )
        found: list[str] = []
        position = 0
        for pattern, expected in patterns:
            match = re.compile(pattern).match(text, position)
            if match is None:
                wrong = repr(text[position]) if position < len(text) else "the end"
                place = f"backbone code {text!r}: at character {position + 1}"
                raise ValueError(f"{place} found {wrong}, expected {expected}")
            found.append(match[0])
            position = match.end()
        return cls(found[0], int(found[2]), (found[4], found[6], found[8], found[10]))
