import itertools
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FixedTrial
from pydantic import ValidationError

from smnas_optuna.parts.architecture import Architecture, InputSize
from smnas_optuna.parts.backbones.searched import BackboneCode
from smnas_optuna.parts.heads.rcnn import RCNNHead
from smnas_optuna.parts.levels import SINGLE_LEVEL
from smnas_optuna.parts.necks.fpn import FPN
from smnas_optuna.parts.rpns.rpn import RPN
from smnas_optuna.samplers import PartialOrderPruningSampler
from smnas_optuna.search_space.candidate import CandidateSpace
from smnas_optuna.search_space.modular import ModularSpace
from smnas_optuna.search_space.widths import WidthSpace
from tests.parts.texts import CLASSIC_BACKBONES

PAPERS_SPACE = ModularSpace()
FOUND = {
    "E0": "512x512 basicblock_64_1-21-21-12 FPN(P2-P5,c=128) RPN 2FC",
    "E1": "800x600 basicblock_72_111-2111-2-111112 FPN(P2-P5,c=256) RPN 2FC",
    "E2": "800x600 basicblock_56_12-11111-211-1112 FPN(P1-P5,c=128) RPN Cascade(n=3)",
    "E3": "800x600 bottleneck_56_211-111111111-2111111-11112111 FPN(P1-P5,c=128) RPN Cascade(n=3)",
    "E4": "800x600 Xbottleneck_56_21-21-111111111111111-2111111 FPN(P1-P5,c=256) GA-RPN Cascade(n=3)",
    "E5": "1333x800 Xbottleneck_56_21-21-11111111111111-21111111 FPN(P1-P5,c=256) GA-RPN Cascade(n=3)",
}
# The last level used is P4, P3, P2, P1, and P3 where there is no neck.
NECKS = ["FPN(P1-P5,c=256) ", "FPN(P1-P3:P1-P5,c=128) ", "FPN(P2-P2:P2-P6,c=512) ", "FPN(P1-P1,c=256) ", ""]

Network = tuple[int, tuple[str, ...], int]


def own_space(text: str) -> CandidateSpace:
    space = PAPERS_SPACE.for_candidate(Architecture.parse(text))
    assert isinstance(space, CandidateSpace)
    return space


def code_of(architecture: Architecture) -> BackboneCode:
    assert isinstance(architecture.backbone, BackboneCode)
    return architecture.backbone


def distributions_of(space: CandidateSpace) -> dict[str, BaseDistribution]:
    trial = FixedTrial(space.params(space.baseline))
    space.suggest(trial)
    return trial.distributions


def range_of(distribution: BaseDistribution) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, IntDistribution)
    return range(distribution.low, distribution.high + 1)


def small_space(
    built: int,
    ranges: Sequence[str],
    base_channels: Sequence[int] = (8,),
    fpn_channels: Sequence[int] = (16,),
    block: str = "basicblock",
    neck: bool = True,
) -> CandidateSpace:
    """Return the space of a candidate with the shortest backbone, of which the first ``built`` stages are built."""
    lengths = [int(text[0]) for text in ranges[:built]] + [1] * (4 - built)
    digits = iter("1" * (sum(lengths) - 3) + "222")
    s2, s3, s4, s5 = ["".join(itertools.islice(digits, length)) for length in lengths]
    backbone = BackboneCode(block, base_channels[0], (s2, s3, s4, s5))
    fpn = FPN(1, built, 5, fpn_channels[0]) if neck else None
    choices = {"base_channels": base_channels, "blocks": ranges}
    space = ModularSpace.model_validate({block: choices, "fpn_channels": fpn_channels})
    found = space.for_candidate(Architecture(InputSize(64, 48), backbone, fpn, RPN(), RCNNHead()))
    assert isinstance(found, CandidateSpace)
    return found


@st.composite
def small_spaces(draw: st.DrawFn) -> CandidateSpace:
    built = draw(st.integers(1, 4))
    ends = st.tuples(st.integers(1, 3), st.integers(1, 3)).map(sorted)
    return small_space(
        built,
        [f"{low}-{high}" for low, high in draw(st.lists(ends, min_size=4, max_size=4))],
        draw(st.lists(st.sampled_from([2, 4, 6, 8]), min_size=1, max_size=3, unique=True)),
        draw(st.lists(st.sampled_from([8, 16, 24]), min_size=1, max_size=2, unique=True)),
        draw(st.sampled_from(BackboneCode.BLOCKS)),
        built != SINGLE_LEVEL or draw(st.booleans()),
    )


@st.composite
def default_spaces(draw: st.DrawFn) -> CandidateSpace:
    backbone, neck = draw(st.sampled_from(list(CLASSIC_BACKBONES))), draw(st.sampled_from(NECKS))
    return own_space(f"800x600 {backbone} {neck}RPN 2FC")


def params_of(space: CandidateSpace) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {name: st.sampled_from(range_of(distribution)) for name, distribution in distributions_of(space).items()}
    )


def built_stages(space: CandidateSpace) -> int:
    return space.candidate.neck.last_input if space.candidate.neck else 3


def every_network(space: CandidateSpace) -> set[Network]:
    """Return base, built stages and FPN channels of every network that the space should contain, by brute force."""
    built = built_stages(space)
    stages = [
        ["".join(digits) for length in range(low, high + 1) for digits in itertools.product("12", repeat=length)]
        for low, high in space.blocks.bounds[:built]
    ]
    # Each stage that is not built can hold one of the three doublings.
    codes = [code for code in itertools.product(*stages) if built - 1 <= "".join(code).count("2") <= 3]
    channels = space.fpn_channels if space.candidate.neck else (0,)
    return set(itertools.product(space.blocks.base_channels, codes, channels))


def network_of(architecture: Architecture) -> Network:
    built = architecture.neck.last_input if architecture.neck else 3
    code = code_of(architecture)
    return code.base, code.stages[:built], architecture.neck.channels if architecture.neck else 0


@pytest.mark.parametrize("built", [4, 3, 2, 1])
@pytest.mark.parametrize(
    "ranges",
    [
        ("1-1", "1-1", "1-1", "1-1"),
        ("1-2", "1-2", "1-2", "1-2"),
        ("1-3", "2-2", "1-1", "1-2"),
        ("2-3", "1-1", "3-3", "1-1"),
    ],
    ids=" ".join,
)
def test_the_values_of_the_parameters_suggest_every_network_of_the_space_and_no_other(
    built: int, ranges: tuple[str, ...]
) -> None:
    space = small_space(built, ranges)
    distributions = distributions_of(space)
    given = set()
    for values in itertools.product(*map(range_of, distributions.values())):
        given.add(space.suggest(FixedTrial(dict(zip(distributions, values, strict=True)))))
    networks = [network_of(architecture) for architecture in given]
    assert set(networks) == every_network(space)
    assert len(networks) == len(set(networks)) == space.size


@settings(max_examples=60, deadline=None)
@given(small_spaces())
def test_a_space_has_as_many_networks_as_its_size_says(space: CandidateSpace) -> None:
    assert space.size == len(every_network(space))


@pytest.mark.parametrize(
    ("backbone", "sizes"),
    [
        ("ResNet18", (10_278_912, 554_400, 15_408, 348, 184_800)),
        ("ResNet101", (394_080_000, 23_281_440, 62_400, 348, 7_760_480)),
        ("ResNeXt50", (187_856_640, 10_602_720, 15_408, 348, 3_534_240)),
        ("MobileNetV2", (12_146_400, 1_162_650, 19_260, 435, 387_550)),
    ],
)
def test_the_default_spaces_have_these_sizes(backbone: str, sizes: tuple[int, ...]) -> None:
    assert tuple(own_space(f"800x600 {backbone} {neck}RPN 2FC").size for neck in NECKS) == sizes


@settings(max_examples=300, deadline=None)
@given(st.data(), small_spaces() | default_spaces())
def test_the_parameters_of_a_suggested_architecture_suggest_it_again(
    data: st.DataObject, space: CandidateSpace
) -> None:
    trial = FixedTrial(data.draw(params_of(space)))
    architecture = space.suggest(trial)
    params = space.params(architecture)
    assert space.suggest(FixedTrial(params)) == architecture
    assert list(params) == list(trial.params)
    assert trial.distributions == distributions_of(space)
    assert Architecture.parse(str(architecture)) == architecture
    assert "".join(code_of(architecture).stages).count("2") == 3


def test_a_doubling_stays_in_its_stage_when_stages_grow_and_shrink() -> None:
    space = own_space("800x600 ResNet101 FPN(P1-P5,c=256) RPN 2FC")
    params = space.params(space.baseline)
    for lengths in itertools.product((1, 2, 4), (1, 5, 10), (1, 6, 24), (1, 3, 10)):
        depths = dict(zip(("blocks_s2", "blocks_s3", "blocks_s4", "blocks_s5"), lengths, strict=True))
        assert code_of(space.suggest(FixedTrial(params | depths))).stages == tuple(
            first + "1" * (length - 1) for first, length in zip("1222", lengths, strict=True)
        )


@pytest.mark.parametrize(
    ("doublings", "stages"),
    [
        ((2, 2, 2), ("11", "22", "21", "11")),
        ((7, 7, 7), ("11", "11", "12", "22")),
        ((0, 7, 0), ("22", "11", "11", "12")),
        ((6, 5, 5), ("11", "11", "12", "22")),
    ],
)
def test_doublings_that_meet_move_to_the_next_free_block(doublings: tuple[int, ...], stages: tuple[str, ...]) -> None:
    space = small_space(4, ["2-2"] * 4)
    params = dict(zip(("doubling_1", "doubling_2", "doubling_3"), doublings, strict=True))
    assert code_of(space.suggest(FixedTrial(space.params(space.baseline) | params))).stages == stages


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("512x512 ResNet18 FPN(P2-P5,c=256) RPN 2FC", "basicblock_64_11-21-21-21"),
        ("512x512 ResNet18 FPN(P2-P3:P2-P5,c=256) RPN 2FC", "basicblock_64_11-21-21-2"),
        ("512x512 ResNet18 RPN 2FC", "basicblock_64_11-21-21-2"),
        ("512x512 ResNet18 FPN(P2-P2:P2-P6,c=256) RetinaNet", "basicblock_64_11-21-2-2"),
        ("512x512 ResNet18 FPN(P1-P1,c=256) GA-RPN 2FC", "basicblock_64_11-2-2-2"),
        ("512x512 MobileNetV2 RetinaNet", "MBblock_24_11-211-2111111-2"),
        ("512x512 Xbottleneck_56_21-21-11-2 FPN(P2-P2:P2-P5,c=256) RPN 2FC", "Xbottleneck_56_21-21-1-2"),
        (FOUND["E3"], "bottleneck_56_211-111111111-2111111-11112111"),
    ],
)
def test_a_baseline_is_the_candidate_with_its_backbone_as_a_code_up_to_the_last_level_used(
    text: str, code: str
) -> None:
    candidate, baseline = Architecture.parse(text), own_space(text).baseline
    assert str(baseline.backbone) == code
    assert str(baseline) == str(candidate).replace(str(candidate.backbone), code)


@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("backbone", [*CLASSIC_BACKBONES, *(text.split()[1] for text in FOUND.values())])
def test_the_default_space_contains_published_and_found_backbones(backbone: str, neck: str) -> None:
    space = own_space(f"800x600 {backbone} {neck}RPN 2FC")
    for architecture in (space.baseline, *space.published_starts):
        assert space.suggest(FixedTrial(space.params(architecture))) == architecture


@pytest.mark.parametrize("name", FOUND)
def test_a_search_with_a_candidate_of_the_paper_starts_from_the_papers_backbone(name: str) -> None:
    space = own_space(FOUND[name])
    assert space.baseline == space.candidate
    assert space.candidate in space.published_starts


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        (
            "512x512 ResNet18 FPN(P2-P5,c=256) RPN 2FC",
            ["basicblock_64_1-21-21-12", "basicblock_72_111-2111-2-111112", "basicblock_56_12-11111-211-1112"],
        ),
        (
            "512x512 ResNet18 RPN 2FC",
            ["basicblock_64_1-21-21-2", "basicblock_72_111-2111-2-2", "basicblock_56_12-11111-211-2"],
        ),
        ("512x512 ResNet50 FPN(P1-P5,c=128) RPN 2FC", ["bottleneck_56_211-111111111-2111111-11112111"]),
        ("512x512 ResNeXt101 FPN(P2-P2,c=256) RPN 2FC", ["Xbottleneck_56_21-21-1-2"]),
        ("512x512 MobileNetV2 RPN 2FC", []),
    ],
)
def test_published_starts_are_the_papers_backbones_with_the_same_block(text: str, starts: list[str]) -> None:
    candidate = Architecture.parse(text)
    assert [str(start) for start in own_space(text).published_starts] == [
        str(candidate).replace(str(candidate.backbone), start) for start in starts
    ]


def test_published_starts_outside_of_the_space_are_omitted() -> None:
    space = ModularSpace.model_validate({"basicblock": {"base_channels": [56, 64], "blocks": ["1-3"] * 4}})
    candidate = Architecture.parse("512x512 ResNet18 FPN(P2-P5,c=256) RPN 2FC")
    starts = space.for_candidate(candidate).published_starts
    assert [str(start.backbone) for start in starts] == ["basicblock_64_1-21-21-12"]


def test_keys_that_a_recipe_omits_have_defaults() -> None:
    space = ModularSpace.model_validate(
        {"basicblock": {"base_channels": [12, 8]}, "MBblock": {"blocks": [" 1-2", "1 - 3", "2-2", "1-1"]}}
    )
    assert space.basicblock.base_channels == (8, 12)
    assert space.basicblock.blocks == PAPERS_SPACE.basicblock.blocks
    assert space.MBblock.blocks == ("1-2", "1-3", "2-2", "1-1")
    assert space.MBblock.base_channels == PAPERS_SPACE.MBblock.base_channels
    assert (space.bottleneck, space.fpn_channels) == (PAPERS_SPACE.bottleneck, PAPERS_SPACE.fpn_channels)
    assert ModularSpace.model_validate(space.model_dump(mode="json")) == space


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"basicblock": {"base_channels": []}}, "basicblock.base_channels"),
        ({"basicblock": {"base_channels": 48}}, "basicblock.base_channels"),
        ({"basicblock": {"base_channels": [48.5]}}, "basicblock.base_channels"),
        ({"basicblock": {"base_channels": [True]}}, "basicblock.base_channels"),
        ({"bottleneck": {"base_channels": [48, 56, 48]}}, "48 listed more than once"),
        ({"bottleneck": {"base_channels": [0, 56]}}, "found 0, expected a positive number of channels"),
        ({"Xbottleneck": {"base_channels": [56, 63]}}, "found 63, expected an even number of channels"),
        ({"MBblock": {"blocks": "1-6"}}, "MBblock.blocks"),
        ({"MBblock": {"blocks": ["1-4", "1-6"]}}, "found 2 ranges, expected 4: one for each of s2, s3, s4, s5"),
        ({"MBblock": {"blocks": [*["1-4"] * 3, 6]}}, "found 6, expected the fewest and the most blocks of a stage"),
        ({"MBblock": {"blocks": [*["1-4"] * 3, "0-6"]}}, "found '0-6', expected the fewest and the most blocks"),
        ({"MBblock": {"blocks": [*["1-4"] * 3, "6-1"]}}, "found '6-1', expected no more than 1 before the '-'"),
        ({"basicblock": {"stages": ["1-4"] * 4}}, "basicblock.stages"),
        ({"basicblock": None}, "basicblock"),
        ({"basicblocks": {}}, "basicblocks"),
        ({"fpn_channels": []}, "fpn_channels"),
        ({"fpn_channels": [128, 128]}, "128 listed more than once"),
        ({"fpn_channels": [-128]}, "found -128, expected a positive number of channels"),
    ],
)
def test_the_error_of_an_impossible_space_names_the_key(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        ModularSpace.model_validate(settings)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ResNet18(w=16) FPN(P2-P5,c=256)", "the space of basicblocks: base_channels 16 is not among 48, 56, 64, 72"),
        ("MobileNetV2(w=32) FPN(P2-P5,c=256)", "base_channels 12 is not among 24, 48, 56, 64, 72"),
        ("ResNet18 FPN(P2-P5,c=64)", "fpn_channels 64 is not among 128, 256, 512"),
        ("bottleneck_64_1-2-1111111111111111111111111-22 FPN(P2-P5,c=256)", "blocks_s4 25 is not within 1-24"),
        (
            "basicblock_64_1-2-2-1 FPN(P2-P5,c=256)",
            "backbone 1-2-2-1 doubles its channels in 2 blocks up to P4, expected 3",
        ),
        ("basicblock_64_2-2-2-2 FPN(P2-P5,c=256)", "2-2-2-2 doubles its channels in 4 blocks up to P4, expected 3"),
        ("basicblock_64_1-11-2-2", "1-11-2 doubles its channels in 1 blocks up to P3, expected 2 to 3"),
    ],
)
def test_a_candidate_outside_of_its_own_space_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        own_space(f"512x512 {text} RPN 2FC")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("96x72 basicblock_16_1-2-2-2 FPN(P1-P4,c=32) RPN 2FC", "neck FPN from P1-P4 to P4 is not the candidate's"),
        ("64x48 basicblock_16_1-2-2-2 FPN(P1-P3,c=32) RPN 2FC", "input_size 64x48 is not the candidate's, 96x72"),
        ("96x72 basicblock_16_1-2-2-2 RPN 2FC", "neck none is not the candidate's, FPN from P1-P3 to P3"),
        ("96x72 basicblock_16_1-2-2-2 FPN(P1-P3,c=32) GA-RPN 2FC", "rpn GA-RPN is not the candidate's, RPN"),
        ("96x72 basicblock_16_1-2-2-2 FPN(P1-P3,c=32) RetinaNet", "rpn none is not the candidate's, RPN"),
        ("96x72 basicblock_16_1-2-2-2 FPN(P1-P3,c=32) RPN Cascade(n=2)", "head Cascade(n=2) is not the candidate's"),
        (
            "96x72 MBblock_16_1-2-2-2 FPN(P1-P3,c=32) RPN 2FC",
            "MBblock_16_1-2-2-2: expected a code with the candidate's block, basicblock",
        ),
        (
            "96x72 ResNet18(w=16) FPN(P1-P3,c=32) RPN 2FC",
            "ResNet18(w=16): expected a code with the candidate's block, basicblock",
        ),
        ("96x72 basicblock_64_1-2-2-2 FPN(P1-P3,c=32) RPN 2FC", "base_channels 64 is not among 16, 24"),
        ("96x72 basicblock_16_1-2-2-2 FPN(P1-P3,c=64) RPN 2FC", "fpn_channels 64 is not among 32"),
        ("96x72 basicblock_16_1-2-2111-2 FPN(P1-P3,c=32) RPN 2FC", "blocks_s4 4 is not within 1-3"),
        ("96x72 basicblock_16_11-1-2-2 FPN(P1-P3,c=32) RPN 2FC", "11-1-2 doubles its channels in 1 blocks up to P3"),
        (
            "96x72 basicblock_16_1-2-2-21 FPN(P1-P3,c=32) RPN 2FC",
            "basicblock_16_1-2-2-21: expected basicblock_16_1-2-2-2, its code where P3 is the last level used",
        ),
    ],
)
def test_an_architecture_outside_of_a_space_has_no_parameters_and_no_place_in_its_order(
    text: str, message: str
) -> None:
    choices = {"base_channels": [16, 24], "blocks": ["1-2", "1-2", "1-3", "1-2"]}
    space = ModularSpace.model_validate({"basicblock": choices, "fpn_channels": [32]}).for_candidate(
        Architecture.parse("96x72 ResNet18(w=16) FPN(P1-P3,c=32) RPN 2FC")
    )
    for refuse in (space.params, space.order):
        with pytest.raises(ValueError, match=r".") as refused:
            refuse(Architecture.parse(text))
        assert message in str(refused.value)


def precedes(space: CandidateSpace, one: Architecture, other: Architecture) -> bool:
    (group, vector), (other_group, other_vector) = space.order(one), space.order(other)
    assert group == other_group
    return all(a <= b for a, b in zip(vector, other_vector, strict=True))


@cache
def results_from(smaller: tuple[int, ...], larger: tuple[int, ...]) -> bool:
    """Whether a stage results from a larger one by deleting and narrowing blocks, by brute force."""
    if not smaller or not larger:
        return not smaller
    deleted = results_from(smaller, larger[1:])
    return deleted or (smaller[0] <= larger[0] and results_from(smaller[1:], larger[1:]))


@st.composite
def chains(draw: st.DrawFn, length: int) -> tuple[CandidateSpace, list[Architecture]]:
    """Draw architectures of which each shares some parameters with the one before, so that many are comparable."""
    space = draw(small_spaces() | default_spaces())
    params = draw(params_of(space))
    chain = []
    for _ in range(length):
        fresh = draw(params_of(space))
        params = {name: fresh[name] if draw(st.booleans()) else value for name, value in params.items()}
        chain.append(space.suggest(FixedTrial(params)))
    return space, chain


@settings(max_examples=300, deadline=None)
@given(chains(2))
def test_one_precedes_another_iff_it_results_from_it_by_deleting_and_narrowing_blocks(
    drawn: tuple[CandidateSpace, list[Architecture]],
) -> None:
    space, pair = drawn
    for one, other in itertools.product(pair, repeat=2):
        small, large = code_of(one), code_of(other)
        stages = list(zip(small.planes, large.planes, strict=True))[: built_stages(space)]
        necks = one.neck is None or other.neck is None or one.neck.channels <= other.neck.channels
        expected = small.base <= large.base and necks and all(itertools.starmap(results_from, stages))
        assert precedes(space, one, other) == expected


@settings(max_examples=200, deadline=None)
@given(chains(3))
def test_precedence_is_a_partial_order(drawn: tuple[CandidateSpace, list[Architecture]]) -> None:
    space, architectures = drawn
    for one, two, three in itertools.product(architectures, repeat=3):
        assert precedes(space, one, one)
        if precedes(space, one, two) and precedes(space, two, one):
            assert one == two
        if precedes(space, one, two) and precedes(space, two, three):
            assert precedes(space, one, three)


ARROWS = {
    "a block less": ("basicblock_64_1-21-21-21 FPN(P2-P5,c=256)", "basicblock_64_11-21-21-21 FPN(P2-P5,c=256)"),
    "a narrower block": ("basicblock_64_11-21-21-12 FPN(P2-P5,c=256)", "basicblock_64_11-21-21-21 FPN(P2-P5,c=256)"),
    "a later doubling": ("basicblock_64_11-21-11-22 FPN(P2-P5,c=256)", "basicblock_64_11-21-21-21 FPN(P2-P5,c=256)"),
    "fewer base channels": ("basicblock_56_11-21-21-21 FPN(P2-P5,c=256)", "basicblock_64_11-21-21-21 FPN(P2-P5,c=256)"),
    "fewer FPN channels": ("basicblock_64_11-21-21-21 FPN(P2-P5,c=128)", "basicblock_64_11-21-21-21 FPN(P2-P5,c=256)"),
}


@pytest.mark.parametrize(("smaller", "larger"), ARROWS.values(), ids=ARROWS)
def test_an_architecture_precedes_the_larger_one(smaller: str, larger: str) -> None:
    space = own_space("512x512 ResNet18 FPN(P2-P5,c=256) RPN 2FC")
    one, other = (Architecture.parse(f"512x512 {text} RPN 2FC") for text in (smaller, larger))
    assert precedes(space, one, other)
    assert not precedes(space, other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("11-2-21-21", "1-21-21-21"),
        ("11-21-21-12", "1-21-21-21"),
        ("12-1-22-1", "111-21-21-2"),
    ],
)
def test_blocks_of_different_stages_do_not_compensate_for_each_other(one: str, other: str) -> None:
    space = own_space("512x512 ResNet18 FPN(P2-P5,c=256) RPN 2FC")
    pair = [Architecture.parse(f"512x512 basicblock_64_{code} FPN(P2-P5,c=256) RPN 2FC") for code in (one, other)]
    assert not precedes(space, pair[0], pair[1])
    assert not precedes(space, pair[1], pair[0])


def test_networks_with_equal_blocks_are_ordered_by_their_stems() -> None:
    space = own_space("512x512 MobileNetV2 RPN 2FC")
    narrow, wide = (Architecture.parse(f"512x512 MBblock_{code} RPN 2FC") for code in ("24_2-2-2-1", "48_1-2-2-2"))
    assert code_of(narrow).planes[:3] == code_of(wide).planes[:3]
    assert precedes(space, narrow, wide)
    assert not precedes(space, wide, narrow)


def known_size(architecture: Architecture) -> float:
    return float(sum(width**2 for stage in code_of(architecture).planes for width in stage))


def search(space: CandidateSpace, sampler: BaseSampler, storage: str | None, n_trials: int) -> list[Architecture]:
    suggested: list[Architecture] = []

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        architecture = space.suggest(trial)
        suggested.append(architecture)
        return float(sum(space.order(architecture)[1])), known_size(architecture)

    study = optuna.create_study(
        study_name="coco/modular/C0",
        storage=storage,
        sampler=sampler,
        directions=["maximize", "minimize"],
        load_if_exists=True,
    )
    for start in (space.baseline, *space.published_starts):
        study.enqueue_trial(space.params(start), skip_if_exists=True)
    study.optimize(objective, n_trials=n_trials)
    assert {space.baseline, *space.published_starts} <= {space.suggest(FixedTrial(t.params)) for t in study.trials}
    assert [space.suggest(FixedTrial(trial.params)) for trial in study.trials[-n_trials:]] == suggested
    return suggested


SAMPLERS: dict[str, Callable[[CandidateSpace, int], BaseSampler]] = {
    "random": lambda space, seed: RandomSampler(seed=seed),
    "tpe": lambda space, seed: TPESampler(n_startup_trials=5, multivariate=True, seed=seed),
    "nsga2": lambda space, seed: NSGAIISampler(population_size=6, mutation_prob=0.5, seed=seed),
    "pop": lambda space, seed: PartialOrderPruningSampler(space.suggest, space.order, {1: known_size}, seed=seed),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_samplers_search_the_space_and_resume(name: str, tmp_path: Path) -> None:
    space = own_space("800x600 ResNet101 FPN(P1-P5,c=256) RPN 2FC")
    storage = f"sqlite:///{tmp_path / 'smnas.db'}"
    suggested = search(space, SAMPLERS[name](space, 0), storage, 10) + search(
        space, SAMPLERS[name](space, 1), storage, 6
    )
    assert len(set(suggested)) >= 12
    if name == "pop":
        assert len(set(suggested)) == len(suggested)


def test_the_partial_order_sampler_ends_when_a_space_is_exhausted() -> None:
    space = small_space(2, ["1-2", "1-2", "1-1", "1-1"], base_channels=(8, 12))
    suggested: list[Architecture] = []

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        suggested.append(space.suggest(trial))
        size = known_size(suggested[-1])
        return size, size

    sampler = PartialOrderPruningSampler(space.suggest, space.order, seed=0)
    study = optuna.create_study(sampler=sampler, directions=["maximize", "minimize"])
    study.optimize(objective, n_trials=10 * space.size)
    assert len(suggested) == len(set(suggested)) <= space.size


def test_the_space_needs_neither_torch_nor_optuna() -> None:
    program = "import sys, smnas_optuna.search_space.modular; print({'torch', 'optuna'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"


LITE = "320x240 timm:tf_efficientnet_lite0 FPN(P2-P4,c=64) RPN Cascade(n=2)"
WIDTHS = ModularSpace(fpn_channels=(32, 64), head_widths=(0.5, 1, 2))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (LITE, 6),
        ("320x240 CSPNeXt-s CSPNeXtPAFPN(P2-P4,c=64) RTMDet", 6),
        ("320x240 ResNet50-caffe GA-RPN 2FC", 3),
    ],
)
def test_of_a_backbone_without_a_code_the_widths_of_neck_and_head_are_searched(text: str, size: int) -> None:
    candidate = Architecture.parse(text)
    space = WIDTHS.for_candidate(candidate)
    assert isinstance(space, WidthSpace)
    assert (space.size, space.baseline, space.published_starts) == (size, candidate, ())
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    found = {space.suggest(study.ask()) for _ in range(20 * size)}
    assert len(found) == size
    for architecture in found:
        assert space.suggest(FixedTrial(space.params(architecture))) == architecture
        assert Architecture.parse(str(architecture)) == architecture
        assert str(architecture.backbone) == str(candidate.backbone)
    assert len({space.order(architecture) for architecture in found}) == size
    assert len({space.order(architecture)[0] for architecture in found}) == 1


def test_a_wider_neck_or_head_is_bigger() -> None:
    space = WIDTHS.for_candidate(Architecture.parse(LITE))
    narrow = Architecture.parse("320x240 timm:tf_efficientnet_lite0 FPN(P2-P4,c=32) RPN Cascade(n=2,w=0.5)")
    (group, small), (same, large) = space.order(narrow), space.order(Architecture.parse(LITE))
    assert group == same
    assert all(one <= other for one, other in zip(small, large, strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LITE.replace("c=64", "c=48"), "fpn_channels 48 is not among 32, 64"),
        (LITE.replace("n=2", "n=2,w=3"), "head_width 3.0 is not among 0.5, 1.0, 2.0"),
        (LITE.replace("lite0", "lite1"), "differs from the candidate in more than the widths of neck and head"),
    ],
)
def test_another_architecture_is_not_in_the_space_of_widths(text: str, message: str) -> None:
    space = WIDTHS.for_candidate(Architecture.parse(LITE))
    with pytest.raises(ValueError, match=message):
        space.params(Architecture.parse(text))


def test_a_candidate_outside_of_the_widths_is_refused() -> None:
    with pytest.raises(ValueError, match="outside of the space of widths: fpn_channels 48 is not among"):
        WIDTHS.for_candidate(Architecture.parse(LITE.replace("c=64", "c=48")))
    with pytest.raises(ValidationError, match="expected distinct widths, 1 among them"):
        ModularSpace(head_widths=(0.5, 2))
