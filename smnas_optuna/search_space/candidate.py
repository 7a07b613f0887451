"""Space of a candidate of stage two: depth, width and channel doublings of its backbone (SM-NAS, section 3.2.2)."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from math import comb
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.searched import BackboneCode
from smnas_optuna.parts.necks.neck import Neck

if TYPE_CHECKING:
    import optuna  # reading a recipe to build detectors needs no Optuna

STAGES = ("s2", "s3", "s4", "s5")
# Every backbone of the paper doubles its channels three times.
DOUBLINGS = 3
_DOUBLING_NAMES = tuple(f"doubling_{number}" for number in range(1, DOUBLINGS + 1))

# The backbones of E0 to E5. Tables 6 and 7 misprint the base channels of E1 (56) and E2 (48): the parameters and FLOPs
# in these tables are those of 72 and 56.
PUBLISHED = tuple(
    BackboneCode.read(text)
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
        # Half of the base channels is the width of the stem's first convolution and the groups of a ResNeXt block.
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
    """The choices for backbones with one kind of block.

    Args:
        base_channels: Choices of the channels (planes) before the first doubling: positive, even, distinct; they are
            sorted.
        blocks: Fewest and most blocks, ``LOW-HIGH``, of each of the stages s2 to s5 at stride 4, 8, 16 and 32.

    Raises:
        pydantic.ValidationError: A value is not valid; the message says what was found and what was expected.
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


@dataclass(frozen=True)
class CandidateSpace:
    """The architectures that differ from one candidate in depth and width only.

    The base channels, the number of blocks of each stage, the three blocks that double the channels, and the channels
    of the FPN are searched. Kind of block, input size, levels of the neck, RPN and head are the candidate's.

    A detector builds the backbone up to the last level that it uses. In a code, later stages have one block each, and
    doublings that do not occur in the stages that are built are put into the last of them, such as ``11-21-1-2``.
    Networks that are equal thus have equal codes.

    The parameters have the same distributions in every trial:

    - ``base_channels``, ``fpn_channels`` (only with an FPN): one of the choices.
    - ``blocks_s2`` to ``blocks_s5``: number of blocks of each stage that is built.
    - ``doubling_1`` to ``doubling_3``: positions of the doublings, in any order. A stage has as many positions as it
      may have blocks, one if it is not built; positions are counted through all stages. A stage with fewer blocks is
      stretched over its positions, so a doubling stays in its stage when the number of blocks of another stage changes.
      Where several doublings fall into one block, all but one move to the next free block or, at the end, to the
      previous one.

    Args:
        candidate: The architecture from stage one.
        blocks: Choices for its backbone.
        fpn_channels: Choices of the channels of its FPN.
    """

    candidate: Architecture
    blocks: BlockSpace
    fpn_channels: tuple[int, ...]

    @property
    def _built(self) -> int:
        """Number of stages that are built; the output of stage s2 is level P1."""
        return self.candidate.backbone_levels[-1]

    @property
    def _start(self) -> BackboneCode:
        code = self.candidate.backbone.code
        assert code is not None
        return code

    @property
    def _block(self) -> str:
        return self._start.block

    @cached_property
    def _bounds(self) -> tuple[tuple[int, int], ...]:
        return self.blocks.bounds[: self._built]

    @property
    def _positions(self) -> list[int]:
        """Number of positions for doublings in each stage."""
        return [high for _, high in self._bounds] + [1] * (len(STAGES) - self._built)

    def suggest(self, trial: "optuna.trial.BaseTrial") -> Architecture:
        """Suggest an architecture; every combination of parameter values is valid."""
        base = trial.suggest_categorical("base_channels", self.blocks.base_channels)
        neck = self.candidate.neck
        if neck is not None:
            neck = replace(neck, channels=trial.suggest_categorical("fpn_channels", self.fpn_channels))
        lengths = [
            trial.suggest_int(f"blocks_{stage}", low, high)
            for stage, (low, high) in zip(STAGES, self._bounds, strict=False)
        ]
        positions = self._positions
        values = [trial.suggest_int(name, 0, sum(positions) - 1) for name in _DOUBLING_NAMES]
        depths = lengths + positions[self._built :]
        doublings = _make_distinct((_block_at(value, depths, positions) for value in values), sum(depths))
        digits = ("2" if block in doublings else "1" for block in range(sum(depths)))
        stages = ["".join(islice(digits, length)) for length in lengths]
        code = BackboneCode(self._block, base, _four_stages(stages))
        return replace(self.candidate, backbone=code, neck=neck)

    def params(self, architecture: Architecture) -> dict[str, int]:
        """Return the parameters that :meth:`suggest` turns into ``architecture``.

        Several positions may mean the same block; each doubling gets the first of its block.

        Raises:
            ValueError: The architecture is not in this space; the message names the part and the choices.
        """
        code = self._code_in_space(architecture)
        params = {"base_channels": code.base}
        if architecture.neck is not None:
            params["fpn_channels"] = architecture.neck.channels
        params |= {
            f"blocks_{stage}": len(digits) for stage, digits in zip(STAGES, code.stages[: self._built], strict=False)
        }
        start, values = 0, []
        for digits, width in zip(code.stages, self._positions, strict=True):
            # Rounded up, to the first of the positions that a block is stretched over.
            values += [start + -(-block * width // len(digits)) for block, digit in enumerate(digits) if digit == "2"]
            start += width
        return params | dict(zip(_DOUBLING_NAMES, values, strict=True))

    @cached_property
    def size(self) -> int:
        """Exact number of different architectures in this space."""
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
        """The candidate itself, with its backbone written as a code."""
        return self._with_backbone(self._start)

    @property
    def published_starts(self) -> tuple[Architecture, ...]:
        """The candidate with the backbones of E0 to E5 of the paper, as far as this space contains them."""
        starts = []
        for code in PUBLISHED:
            architecture = self._with_backbone(code)
            try:
                self.params(architecture)
            except ValueError:
                continue
            starts.append(architecture)
        # Two of them may be equal up to the last level that is used.
        return tuple(dict.fromkeys(starts))

    def order(self, architecture: Architecture) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Return (group, capacity vector) of an architecture from this space.

        x precedes y, "x is no bigger than y", iff their groups are equal and x's vector is componentwise at most y's:
        x results from y by deleting blocks and narrowing stem, blocks and FPN. The vector consists of the base
        channels; the planes of the blocks of each stage that is built, largest first, padded with 0 to the most blocks
        that the stage may have; and the channels of the FPN. Li et al. ("Partial Order Pruning", CVPR 2019) compare
        blocks only. The base channels are needed too, for the stem: without them 48_1 would precede 24_2 and cost more.

        Raises:
            ValueError: The architecture is not in this space; the message names the part and the choices.
        """
        code = self._code_in_space(architecture)
        vector = [code.base]
        # Planes never decrease along a backbone, so reversing puts the largest first.
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
            raise ValueError(f"backbone {code}: expected a code with the candidate's block, {self._block}")
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
            raise ValueError(
                f"backbone {code}: expected {canonical}, its code where P{self._built} is the last level used"
            )
        return code


def _inherited(architecture: Architecture) -> dict[str, str]:
    """Return what all architectures of a candidate's space share, except the kind of block."""
    return {
        "input_size": str(architecture.input_size),
        "neck": _levels(architecture.neck),
        "rpn": str(architecture.rpn or "none"),
        "head": str(architecture.head),
    }


def _levels(neck: Neck | None) -> str:
    return f"{neck.choice} from P{neck.first}-P{neck.last_input} to P{neck.last_output}" if neck else "none"


def _block_at(value: int, depths: Sequence[int], positions: Sequence[int]) -> int:
    """Return the block, counted through all stages from 0, at a position of a doubling."""
    blocks = 0
    for depth, width in zip(depths, positions, strict=True):
        if value < width:
            return blocks + value * depth // width
        value -= width
        blocks += depth
    raise AssertionError("beyond the last position")


def _make_distinct(blocks: Iterable[int], total: int) -> set[int]:
    """Return as many different numbers from ``range(total)``; equal ones move to the next free number."""
    distinct: list[int] = []
    for block in sorted(blocks):
        distinct.append(max(block, distinct[-1] + 1) if distinct else block)
    return {min(block, total - len(distinct) + rank) for rank, block in enumerate(distinct)}


def _canonical(code: BackboneCode, built: int) -> BackboneCode:
    """Return the canonical one of all codes that mean the same network up to level P``built``; raises ValueError."""
    return replace(code, stages=_four_stages(code.stages[:built]))


def _four_stages(built: Sequence[str]) -> tuple[str, str, str, str]:
    """Return the stages that are built, and later stages of one block each with the doublings that are missing.

    Raises:
        ValueError: There are too many doublings, or too few for the later stages to have all others.
    """
    later = len(STAGES) - len(built)
    doublings = sum(digits.count("2") for digits in built)
    missing = DOUBLINGS - doublings
    if not 0 <= missing <= later:
        expected = f"{DOUBLINGS - later} to {DOUBLINGS}" if later else f"{DOUBLINGS}"
        found = f"backbone {'-'.join(built)} doubles its channels in {doublings} blocks up to P{len(built)}"
        raise ValueError(f"{found}, expected {expected}")
    s2, s3, s4, s5 = (*built, *"1" * (later - missing), *"2" * missing)
    return s2, s3, s4, s5
