"""Stage two: how deep and how wide a candidate's backbone is, and where it widens (SM-NAS, section 3.2.2)."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from math import comb
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.searched import BackboneCode
from smnas_optuna.parts.necks.fpn import FPN

if TYPE_CHECKING:
    import optuna  # what reads a recipe to build detectors needs none

STAGES = ("s2", "s3", "s4", "s5")
# Every backbone of the paper ends at 8 times the base channels.
DOUBLINGS = 3
_DOUBLING_NAMES = tuple(f"doubling_{number}" for number in range(1, DOUBLINGS + 1))

# The backbones of E0 to E5. Tables 6 and 7 misprint the base channels of E1 (56) and E2 (48): the parameters and FLOPs
# that stand beside them are those of 72 and 56.
PUBLISHED = tuple(
    BackboneCode.parse(text)
    for text in (
        "basicblock_64_1-21-21-12",
        "basicblock_72_111-2111-2-111112",
        "basicblock_56_12-11111-211-1112",
        "bottleneck_56_211-111111111-2111111-11112111",
        "Xbottleneck_56_21-21-111111111111111-2111111",
        "Xbottleneck_56_21-21-11111111111111-21111111",
    )
)


def _ascending(channels: tuple[int, ...]) -> tuple[int, ...]:
    repeated = sorted({count for count in channels if channels.count(count) > 1})
    if repeated:
        raise ValueError(f"{', '.join(map(str, repeated))} listed more than once")
    if min(channels) < 1:
        raise ValueError(f"found {min(channels)}, expected a positive number of channels")
    return tuple(sorted(channels))


def _even(channels: tuple[int, ...]) -> tuple[int, ...]:
    odd = [count for count in channels if count % 2]
    if odd:
        # The stem's first convolution has half of them, and so many groups has a ResNeXt block.
        raise ValueError(f"found {odd[0]}, expected an even number of channels")
    return channels


def _canonical_range(value: object) -> str:
    match = re.fullmatch(r"\s*([1-9]\d*)\s*-\s*([1-9]\d*)\s*", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"found {value!r}, expected the fewest and the most blocks of a stage, such as 1-6")
    if int(match[1]) > int(match[2]):
        raise ValueError(f"found {value!r}, expected no more than {match[2]} before the '-'")
    return f"{match[1]}-{match[2]}"


def _one_for_each_stage(ranges: tuple[str, ...]) -> tuple[str, ...]:
    if len(ranges) != len(STAGES):
        raise ValueError(f"found {len(ranges)} ranges, expected {len(STAGES)}: one for each of {', '.join(STAGES)}")
    return ranges


ChannelChoices = Annotated[
    tuple[Annotated[int, Field(strict=True)], ...], Field(min_length=1), AfterValidator(_ascending)
]


class BlockSpace(BaseModel):
    """What backbones of one kind of block may consist of.

    Args:
        base_channels: Planes before the first doubling: positive, even, distinct; kept in ascending order.
        blocks: The fewest and the most blocks, ``LOW-HIGH``, of the stages s2 to s5 at stride 4, 8, 16 and 32.

    Raises:
        pydantic.ValidationError: With what was found and what was expected.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_channels: Annotated[ChannelChoices, AfterValidator(_even)]
    blocks: Annotated[
        tuple[Annotated[str, BeforeValidator(_canonical_range)], ...], AfterValidator(_one_for_each_stage)
    ]

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """The fewest and the most blocks of each stage."""
        pairs = (text.split("-") for text in self.blocks)
        return tuple((int(low), int(high)) for low, high in pairs)


class ModularSpace(BaseModel):
    """The modular search space; a recipe need only tell what it changes.

    The default base channels and FPN channels are the paper's, and 24 base channels are MobileNetV2's own. The paper
    does not tell its bounds on blocks; these hold E0 to E5 and every published backbone of the structural space.

    Args:
        basicblock: Of ResNet18 and 34.
        bottleneck: Of ResNet50 and 101.
        Xbottleneck: Of ResNeXt50 and 101.
        MBblock: Of MobileNetV2.
        fpn_channels: Channels of every FPN level: positive, distinct; kept in ascending order.

    Raises:
        pydantic.ValidationError: With what was found and what was expected.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    basicblock: BlockSpace = BlockSpace(base_channels=(48, 56, 64, 72), blocks=("1-4", "1-6", "1-8", "1-8"))
    bottleneck: BlockSpace = BlockSpace(base_channels=(48, 56, 64, 72), blocks=("1-4", "1-10", "1-24", "1-10"))
    Xbottleneck: BlockSpace = BlockSpace(base_channels=(48, 56, 64, 72), blocks=("1-4", "1-6", "1-24", "1-10"))
    MBblock: BlockSpace = BlockSpace(base_channels=(24, 48, 56, 64, 72), blocks=("1-4", "1-6", "1-10", "1-6"))
    fpn_channels: ChannelChoices = (128, 256, 512)

    @field_validator(*BackboneCode.BLOCKS, mode="before")
    @classmethod
    def _narrow(cls, value: object, info: ValidationInfo) -> object:
        """Let a recipe tell only what it changes of one kind of block."""
        assert info.field_name is not None
        default: BlockSpace = cls.model_fields[info.field_name].default
        return default.model_dump() | value if isinstance(value, dict) else value

    def for_candidate(self, architecture: Architecture) -> "CandidateSpace":
        """Return the space around one architecture, whose own backbone must be part of it.

        Args:
            architecture: With a published backbone, as stage one finds them, or with a code.

        Raises:
            ValueError: The architecture is not in its own space; the text names the bound that it is outside of.
        """
        block = architecture.backbone.code.block
        space = CandidateSpace(architecture, getattr(self, block), self.fpn_channels)
        try:
            space.params(space.baseline)
        except ValueError as error:
            raise ValueError(f"candidate {architecture} is outside of the space of {block}s: {error}") from None
        return space


@dataclass(frozen=True)
class CandidateSpace:
    """The architectures that differ from one candidate in depth and width only.

    Searched are the base channels, the blocks of each stage, which three blocks double the channels, and the channels
    of the FPN. Kind of block, input size, levels of the neck, RPN and head are the candidate's.

    A detector builds the backbone up to the last level that it uses. Stages behind that are written as one block each,
    and doublings that are not among the blocks before are written into the last of those, ``11-21-1-2``: networks that
    are the same have the same code.

    Parameters, all of which have the same distribution in every trial:

    - ``base_channels``, ``fpn_channels`` (only with an FPN): as listed.
    - ``blocks_s2`` to ``blocks_s5``, of the stages that are built: number of blocks.
    - ``doubling_1`` to ``doubling_3``: where the channels double, in any order, on a ruler on which each stage has as
      many places as it may have blocks, and a stage that is not built one. A stage with fewer blocks is stretched to
      its places, so a doubling stays in its stage when the number of blocks of another one changes. Of doublings that
      meet in one block all but one move to the next free block or, at the end, to the one before.

    Args:
        candidate: The architecture from stage one.
        blocks: What its backbone may consist of.
        fpn_channels: What its FPN may have.
    """

    candidate: Architecture
    blocks: BlockSpace
    fpn_channels: tuple[int, ...]

    @property
    def _built(self) -> int:
        """How many stages are built: stage s2 ends at level P1."""
        return self.candidate.backbone_levels[-1]

    @property
    def _block(self) -> str:
        return self.candidate.backbone.code.block

    @cached_property
    def _bounds(self) -> tuple[tuple[int, int], ...]:
        return self.blocks.bounds[: self._built]

    @property
    def _places(self) -> list[int]:
        """How many places each stage has on the ruler of doublings."""
        return [high for _, high in self._bounds] + [1] * (len(STAGES) - self._built)

    def suggest(self, trial: "optuna.trial.BaseTrial") -> Architecture:
        """Let a trial choose an architecture; every combination of values is one."""
        base = trial.suggest_categorical("base_channels", self.blocks.base_channels)
        neck = self.candidate.neck
        if neck is not None:
            neck = replace(neck, channels=trial.suggest_categorical("fpn_channels", self.fpn_channels))
        lengths = [
            trial.suggest_int(f"blocks_{stage}", low, high)
            for stage, (low, high) in zip(STAGES, self._bounds, strict=False)
        ]
        places = self._places
        values = [trial.suggest_int(name, 0, sum(places) - 1) for name in _DOUBLING_NAMES]
        depths = lengths + places[self._built :]
        doublings = _part((_block_at(value, depths, places) for value in values), sum(depths))
        digits = ("2" if block in doublings else "1" for block in range(sum(depths)))
        stages = ["".join(islice(digits, length)) for length in lengths]
        code = BackboneCode(self._block, base, _four_stages(stages))
        return replace(self.candidate, backbone=code, neck=neck)

    def params(self, architecture: Architecture) -> dict[str, int]:
        """Return the parameters with which :meth:`suggest` gives ``architecture``.

        Each doubling is at the first place of its block.

        Raises:
            ValueError: The architecture is not in this space; the text names the part and the choices.
        """
        code = self._code_in_space(architecture)
        params = {"base_channels": code.base}
        if architecture.neck is not None:
            params["fpn_channels"] = architecture.neck.channels
        params |= {
            f"blocks_{stage}": len(digits) for stage, digits in zip(STAGES, code.stages[: self._built], strict=False)
        }
        start, values = 0, []
        for digits, places in zip(code.stages, self._places, strict=True):
            # Rounded up, for the first of the places that a block is stretched to.
            values += [start + -(-block * places // len(digits)) for block, digit in enumerate(digits) if digit == "2"]
            start += places
        return params | dict(zip(_DOUBLING_NAMES, values, strict=True))

    @cached_property
    def size(self) -> int:
        """Exact number of different architectures."""
        depths = Counter({0: 1})
        for low, high in self._bounds:
            longer: Counter[int] = Counter()
            for depth, count in depths.items():
                for length in range(low, high + 1):
                    longer[depth + length] += count
            depths = longer
        fewest = DOUBLINGS - (len(STAGES) - self._built)
        codes = sum(
            count * comb(depth, doublings)
            for depth, count in depths.items()
            for doublings in range(fewest, DOUBLINGS + 1)
        )
        necks = len(self.fpn_channels) if self.candidate.neck else 1
        return len(self.blocks.base_channels) * codes * necks

    @property
    def baseline(self) -> Architecture:
        """The candidate itself, its backbone as a code."""
        return self._with_backbone(self.candidate.backbone.code)

    @property
    def published_starts(self) -> tuple[Architecture, ...]:
        """The candidate with each of the backbones of E0 to E5 that lie in this space."""
        starts = []
        for code in PUBLISHED:
            architecture = self._with_backbone(code)
            try:
                self.params(architecture)
            except ValueError:
                continue
            starts.append(architecture)
        # Two of them may be the same up to the last level that is used.
        return tuple(dict.fromkeys(starts))

    def order(self, architecture: Architecture) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Return (group, capacity vector) of an architecture from this space.

        x precedes y, "x is no bigger than y", iff their groups are equal and x's vector is componentwise at most y's:
        x comes of y by deleting blocks and narrowing stem, blocks and FPN. The vector has the base channels, then for
        each stage that is built the planes of its blocks, largest first, with 0 for each block less than there may be,
        and last the channels of the FPN. Li et al. ("Partial Order Pruning", CVPR 2019) compare blocks only; without
        the stem, which has the base channels, 48_1 would precede 24_2 and cost more.

        Raises:
            ValueError: The architecture is not in this space; the text names the part and the choices.
        """
        code = self._code_in_space(architecture)
        vector = [code.base]
        # Along a backbone planes never fall, so the last ones are the largest.
        for planes, (_, most) in zip(code.planes, self._bounds, strict=False):
            vector += [*reversed(planes), *[0] * (most - len(planes))]
        if architecture.neck is not None:
            vector.append(architecture.neck.channels)
        return (code.block, *_inherited(architecture).values()), tuple(vector)

    def _with_backbone(self, code: BackboneCode) -> Architecture:
        return replace(self.candidate, backbone=_canonical(code, self._built))

    def _code_in_space(self, architecture: Architecture) -> BackboneCode:
        """Return the backbone; raises ValueError where the architecture is not in this space."""
        mine = _inherited(self.candidate)
        for part, found in _inherited(architecture).items():
            if found != mine[part]:
                raise ValueError(f"{part} {found} is not the candidate's, {mine[part]}")
        code = architecture.backbone
        if not isinstance(code, BackboneCode) or code.block != self._block:
            raise ValueError(f"backbone {code} is not a code of {self._block}s")
        choices = [("base_channels", code.base, self.blocks.base_channels)]
        if architecture.neck is not None:
            choices.append(("fpn_channels", architecture.neck.channels, self.fpn_channels))
        for name, count, allowed in choices:
            if count not in allowed:
                raise ValueError(f"{name} {count} is not among {', '.join(map(str, allowed))}")
        for stage, digits, (low, high) in zip(STAGES, code.stages, self._bounds, strict=False):
            if not low <= len(digits) <= high:
                raise ValueError(f"blocks_{stage} {len(digits)} is not within {low}-{high}")
        canonical = _canonical(code, self._built)
        if code != canonical:
            raise ValueError(f"backbone {code} is written {canonical} where P{self._built} is the last level used")
        return code


def _inherited(architecture: Architecture) -> dict[str, str]:
    """Return what all architectures of a candidate's space have in common, but for the kind of block."""
    return {
        "input_size": str(architecture.input_size),
        "neck": _levels(architecture.neck),
        "rpn": str(architecture.rpn or "none"),
        "head": str(architecture.head),
    }


def _levels(neck: FPN | None) -> str:
    return f"{neck.NAME} from P{neck.first}-P{neck.last_input} to P{neck.last_output}" if neck else "none"


def _block_at(value: int, depths: Sequence[int], places: Sequence[int]) -> int:
    """Return the block, counted through all stages from 0, at a place of the ruler."""
    blocks = 0
    for depth, width in zip(depths, places, strict=True):
        if value < width:
            return blocks + value * depth // width
        value -= width
        blocks += depth
    raise AssertionError("beyond the ruler's end")


def _part(blocks: Iterable[int], total: int) -> set[int]:
    """Return as many different blocks out of ``range(total)``, those that meet moved on to the next free one."""
    apart: list[int] = []
    for block in sorted(blocks):
        apart.append(max(block, apart[-1] + 1) if apart else block)
    return {min(block, total - len(apart) + rank) for rank, block in enumerate(apart)}


def _canonical(code: BackboneCode, built: int) -> BackboneCode:
    """Return the one code of all that mean the same network up to level P``built``; raises ValueError."""
    return replace(code, stages=_four_stages(code.stages[:built]))


def _four_stages(built: Sequence[str]) -> tuple[str, str, str, str]:
    """Return the stages that are built and, behind them, one block each with the doublings that are missing.

    Raises:
        ValueError: There are too many doublings, or too few for the others to fit behind.
    """
    behind = len(STAGES) - len(built)
    doublings = sum(digits.count("2") for digits in built)
    missing = DOUBLINGS - doublings
    if not 0 <= missing <= behind:
        expected = f"{DOUBLINGS - behind} to {DOUBLINGS}" if behind else f"{DOUBLINGS}"
        found = f"backbone {'-'.join(built)} doubles its channels in {doublings} blocks up to P{len(built)}"
        raise ValueError(f"{found}, expected {expected}")
    s2, s3, s4, s5 = (*built, *"1" * (behind - missing), *"2" * missing)
    return s2, s3, s4, s5
