"""The neck of RTMDet (Lyu et al. 2022): path aggregation with CSPNeXt blocks."""

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.necks.neck import Neck, register_neck
from smnas_optuna.parts.part import INTEGER, Choices, Config

if TYPE_CHECKING:
    import optuna  # building detectors needs no Optuna
    from typing_extensions import Self  # in typing since Python 3.11


@register_neck
@dataclass(frozen=True)
class CSPNeXtPAFPN(Neck):
    """Path aggregation with CSPNeXt blocks: ``CSPNeXtPAFPN(P2-P4,c=128)``, with two blocks ``...,c=192,n=2)``.

    Its output levels are its input levels. A recipe lists ``CSPNeXtPAFPN`` or, with more blocks, ``CSPNeXtPAFPN(n=2)``.

    Args:
        first: See :class:`~smnas_optuna.parts.necks.neck.Neck`.
        last_input: See there.
        last_output: The same as ``last_input``.
        channels: See there.
        blocks: Blocks of each stage, at least 1: 1 in RTMDet-tiny and -s, 2 in -m, 3 in -l, 4 in -x.

    Raises:
        ValueError: An argument is out of range.
    """

    NAME: ClassVar[str] = "CSPNeXtPAFPN"
    FORMS: ClassVar[tuple[str, ...]] = ("CSPNeXtPAFPN(Pa-Pb,c=CHANNELS[,n=BLOCKS])",)
    CHOICE_FORMS: ClassVar[tuple[str, ...] | None] = (NAME, f"{NAME}(n=BLOCKS)")

    blocks: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last_output != self.last_input:
            raise ValueError(f"neck {self}: expected output levels that are the input levels")

    def __str__(self) -> str:
        text = super().__str__()
        return text if self.blocks == 1 else f"{text[:-1]},n={self.blocks})"

    @classmethod
    def parse(cls, text: str) -> "Self | None":
        """Parse ``CSPNeXtPAFPN(Pa-Pb,c=CHANNELS[,n=BLOCKS])``; None for another name, raises ValueError if wrong."""
        neck = super().parse(re.sub(rf",n={INTEGER}(?=\))", "", text))
        return neck and replace(neck, blocks=_blocks_in(text))

    @property
    def place(self) -> tuple[str, tuple[int, ...]]:
        """More levels, channels and blocks are bigger."""
        _, capacity = super().place
        return self.NAME, (*capacity, self.blocks)

    @property
    def choice(self) -> str:
        """The name with the number of blocks; levels and channels are the space's."""
        return self.NAME if self.blocks == 1 else f"{self.NAME}(n={self.blocks})"

    @classmethod
    def offers(cls, choice: str) -> bool:
        """Return whether a choice is the name of this neck, with or without a number of blocks."""
        return re.fullmatch(rf"{cls.NAME}(\(n={INTEGER}\))?", choice) is not None

    @classmethod
    def suggest(cls, choice: str, trial: "optuna.trial.BaseTrial", space: Choices) -> "Self":
        """Let a trial choose the levels; the channels are the space's, and the blocks the choice's."""
        inputs = trial.suggest_categorical("fpn_inputs", space.fpn_inputs)
        first, last = int(inputs[1]), int(inputs[-1])
        return cls(first, last, last, space.fpn_channels, _blocks_in(choice))

    def params(self, space: Choices) -> dict[str, tuple[Any, tuple[Any, ...]]]:
        """Return the levels; raises ValueError if the channels are not the space's."""
        return {"fpn_inputs": super().params(space)["fpn_inputs"]}

    @classmethod
    def count(cls, choice: str, space: Choices) -> int:
        """Return the number of ranges of levels."""
        return len(space.fpn_inputs)

    def config(self, channels: list[int], more_levels: Config, detector: Detector) -> Config:
        """Return the config; see :class:`~smnas_optuna.parts.necks.neck.Neck`."""
        return {
            "type": self.NAME,
            "in_channels": channels,
            "out_channels": self.channels,
            "num_csp_blocks": self.blocks,
            "act_cfg": {"type": "SiLU", "inplace": True},
            **detector.backbone_layers,
        }


def _blocks_in(text: str) -> int:
    match = re.search(rf"\bn=({INTEGER})\)", text)
    return int(match[1]) if match else 1
