import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FixedTrial
from pydantic import ValidationError

from smnas_optuna.parts.architecture import Architecture, InputSize
from smnas_optuna.parts.backbones.backbone import ClassicBackbone
from smnas_optuna.parts.backbones.searched import BackboneCode
from smnas_optuna.parts.heads.rcnn import RCNNHead
from smnas_optuna.parts.heads.retinanet import RetinaNetHead
from smnas_optuna.parts.necks.fpn import FPN
from smnas_optuna.parts.rpns.guided_anchoring import GuidedAnchoringRPN
from smnas_optuna.parts.rpns.rpn import RPN
from smnas_optuna.search_space.structural import StructuralSpace, order
from tests.parts.texts import CLASSIC_BACKBONES

PAPERS_SPACE = StructuralSpace()
Choices = Sequence[Any]


class Walk(FixedTrial):
    """A trial that suggests the choices with given indices, then the first of each list, and records the lists."""

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__({})
        self._indices = indices
        self.taken: list[tuple[str, int, Choices]] = []

    def suggest_categorical(self, name: str, choices: Choices) -> Any:
        index = self._indices[len(self.taken)] if len(self.taken) < len(self._indices) else 0
        self.taken.append((name, index, choices))
        return choices[index]


def walk_through(space: StructuralSpace) -> Iterator[tuple[Walk, Architecture]]:
    """Yield every architecture that ``suggest`` can return, with its trial."""
    indices: list[int] = []
    while True:
        walk = Walk(indices)
        yield walk, space.suggest(walk)
        indices = [index for _, index, _ in walk.taken]
        while indices and indices[-1] + 1 == len(walk.taken[len(indices) - 1][2]):
            indices.pop()
        if not indices:
            return
        indices[-1] += 1


@pytest.fixture(scope="module")
def papers_architectures() -> list[Architecture]:
    return [architecture for _, architecture in walk_through(PAPERS_SPACE)]


def sublists(choices: Sequence[str], most: int | None = None) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(choices), min_size=1, max_size=most, unique=True).map(tuple)


@st.composite
def spaces(draw: st.DrawFn) -> StructuralSpace:
    """Draw a space with any lists that leave no choice without a partner, in any order."""
    heads = draw(sublists(PAPERS_SPACE.heads))
    rpns = draw(sublists(("RPN", "GA-RPN"))) if heads != ("RetinaNet",) else ()
    if "RetinaNet" in heads:
        rpns = tuple(draw(st.permutations([*rpns, "none"])))
    fpn_inputs = draw(sublists(PAPERS_SPACE.fpn_inputs))
    highest_input = max(inputs[-1] for inputs in fpn_inputs)
    return StructuralSpace.model_validate(
        {
            "backbones": draw(sublists(PAPERS_SPACE.backbones, most=2)),
            "base_channels": draw(st.integers(1, 128)),
            "necks": draw(sublists(PAPERS_SPACE.necks)),
            "fpn_inputs": fpn_inputs,
            "fpn_last_outputs": draw(
                sublists(PAPERS_SPACE.fpn_last_outputs).filter(lambda levels: max(levels) >= f"P{highest_input}")
            ),
            "fpn_channels": draw(st.integers(1, 512)),
            "rpns": rpns,
            "heads": heads,
            "input_sizes": draw(sublists(("64x48", "48x64", "512x512", "1333x800"), most=2)),
        }
    )


def test_the_papers_space_has_10332_different_architectures(papers_architectures: list[Architecture]) -> None:
    assert PAPERS_SPACE.size == 10_332
    assert len(papers_architectures) == len(set(papers_architectures)) == 10_332


@settings(max_examples=40, deadline=None)
@given(spaces())
def test_a_space_has_as_many_architectures_as_its_size_says(space: StructuralSpace) -> None:
    architectures = [architecture for _, architecture in walk_through(space)]
    assert len(architectures) == len(set(architectures)) == space.size


@settings(max_examples=40, deadline=None)
@given(spaces())
def test_the_parameters_of_an_architecture_suggest_it_again(space: StructuralSpace) -> None:
    for walk, architecture in walk_through(space):
        params = space.params(architecture)
        assert params == {name: choices[index] for name, index, choices in walk.taken}
        assert space.suggest(FixedTrial(params)) == architecture


@settings(max_examples=40, deadline=None)
@given(spaces())
def test_a_parameter_has_the_same_choices_whenever_it_is_asked_for(space: StructuralSpace) -> None:
    seen: dict[str, Choices] = {}
    for walk, _ in walk_through(space):
        for name, _, choices in walk.taken:
            assert seen.setdefault(name, choices) == choices


@settings(max_examples=40, deadline=None)
@given(spaces())
def test_every_listed_module_is_part_of_some_architecture(space: StructuralSpace) -> None:
    architectures = [architecture for _, architecture in walk_through(space)]
    necks = [architecture.neck for architecture in architectures]
    assert {architecture.backbone for architecture in architectures} == {
        space.backbone(name) for name in space.backbones
    }
    assert {str(architecture.input_size) for architecture in architectures} == set(space.input_sizes)
    assert {"none" if neck is None else "FPN" for neck in necks} == set(space.necks)
    assert {str(architecture.rpn or "none") for architecture in architectures} == set(space.rpns)
    assert {str(architecture.head) for architecture in architectures} == set(space.heads)
    assert {neck.channels for neck in necks if neck} <= {space.fpn_channels}
    if "FPN" in space.necks:
        assert {f"P{neck.first}-P{neck.last_input}" for neck in necks if neck} == set(space.fpn_inputs)


def test_an_fpn_ends_at_or_above_its_last_input() -> None:
    space = StructuralSpace(fpn_inputs=("P1-P2", "P1-P4"), fpn_last_outputs=("P1", "P3", "P5"))
    necks = {str(architecture.neck) for _, architecture in walk_through(space) if architecture.neck}
    assert necks == {"FPN(P1-P2:P1-P3,c=256)", "FPN(P1-P2:P1-P5,c=256)", "FPN(P1-P5,c=256)"}


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"backbones": []}, "backbones"),
        ({"backbones": ["VGG16"]}, "backbones"),
        ({"backbones": ["ResNet18", "ResNet50", "ResNet18"]}, "ResNet18 listed more than once"),
        ({"base_channels": 0}, "base_channels"),
        ({"necks": []}, "necks"),
        ({"necks": ["BiFPN"]}, "necks"),
        ({"fpn_inputs": []}, "fpn_inputs"),
        ({"fpn_inputs": ["P2-P1"]}, "fpn_inputs"),
        ({"fpn_inputs": ["P4-P5"]}, "fpn_inputs"),
        ({"fpn_last_outputs": []}, "fpn_last_outputs"),
        ({"fpn_last_outputs": ["P7"]}, "fpn_last_outputs"),
        ({"fpn_last_outputs": ["P1", "P3"]}, "fpn_last_outputs: none is at or above the last input level of P1-P4"),
        ({"fpn_channels": -1}, "fpn_channels"),
        ({"rpns": []}, "rpns"),
        ({"heads": []}, "heads"),
        ({"heads": ["Cascade(n=5)"]}, "heads"),
        ({"heads": ["RetinaNet"]}, "heads and rpns: heads such as 2FC and RPN, GA-RPN go together"),
        ({"heads": ["2FC"]}, "heads and rpns: the RPN 'none' goes with one-stage heads such as RetinaNet"),
        ({"rpns": ["none"]}, "heads and rpns: 2FC, Cascade(n=2), Cascade(n=3), Cascade(n=4) and an RPN go together"),
        ({"rpns": ["RPN"]}, "heads and rpns: the RPN 'none' goes with RetinaNet"),
        ({"input_sizes": []}, "input_sizes"),
        ({"input_sizes": ["800"]}, "input size '800': expected WIDTHxHEIGHT"),
        ({"input_sizes": ["800x600", " 800x600 "]}, "800x600 listed more than once"),
        ({"resolutions": ["800x600"]}, "resolutions"),
    ],
)
def test_the_error_of_an_impossible_space_names_the_key(lists: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        StructuralSpace.model_validate(lists)
    assert message in str(refused.value)


def test_fpn_levels_do_not_matter_to_a_space_without_fpn() -> None:
    assert StructuralSpace(necks=("none",), fpn_last_outputs=("P1",)).size == 7 * 4 * 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("96x72 ResNet50(w=16) FPN(P2-P5,c=32) RPN 2FC", "backbone 'ResNet50' is not among ResNet18, ResNet34"),
        ("96x72 ResNet18 FPN(P2-P5,c=32) RPN 2FC", "ResNet18 does not have base_channels 16"),
        (
            "96x72 basicblock_16_1-1-1-1 FPN(P2-P5,c=32) RPN 2FC",
            "backbone 'basicblock_16_1-1-1-1' is not among ResNet18, ResNet34",
        ),
        ("64x48 ResNet18(w=16) FPN(P2-P5,c=32) RPN 2FC", "input_size '64x48' is not among 96x72"),
        ("96x72 ResNet18(w=16) RPN 2FC", "neck 'none' is not among FPN"),
        ("96x72 ResNet18(w=16) FPN(P2-P5,c=64) RPN 2FC", "FPN(P2-P5,c=64) does not have fpn_channels 32"),
        ("96x72 ResNet18(w=16) FPN(P1-P5,c=32) RPN 2FC", "fpn_inputs 'P1-P4' is not among P2-P4"),
        ("96x72 ResNet18(w=16) FPN(P2-P6,c=32) RPN 2FC", "fpn_last_output_from_P4 'P6' is not among P4, P5"),
        ("96x72 ResNet18(w=16) FPN(P2-P5,c=32) RPN Cascade(n=3)", "head 'Cascade(n=3)' is not among 2FC"),
        ("96x72 ResNet18(w=16) FPN(P2-P5,c=32) RetinaNet", "head 'RetinaNet' is not among 2FC"),
        ("96x72 ResNet18(w=16) FPN(P2-P5,c=32) GA-RPN 2FC", "rpn 'GA-RPN' is not among RPN"),
    ],
)
def test_an_architecture_outside_a_space_has_no_parameters_there(text: str, message: str) -> None:
    space = StructuralSpace(
        backbones=("ResNet18", "ResNet34"),
        base_channels=16,
        necks=("FPN",),
        fpn_inputs=("P2-P4",),
        fpn_last_outputs=("P4", "P5"),
        fpn_channels=32,
        rpns=("RPN",),
        heads=("2FC",),
        input_sizes=("96x72",),
    )
    assert space.params(Architecture.parse("96x72 ResNet18(w=16) FPN(P2-P5,c=32) RPN 2FC"))
    with pytest.raises(ValueError, match=r".") as refused:
        space.params(Architecture.parse(text))
    assert message in str(refused.value)


@pytest.fixture
def optuna_complaints(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """Turn Python's warnings into errors and return what Optuna logs as warnings or worse."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.enable_propagation()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, logger="optuna"):
        warnings.simplefilter("error")
        # From Python 3.13 on, of connections that SQLAlchemy's pool leaves to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        yield lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    optuna.logging.disable_propagation()
    optuna.logging.set_verbosity(verbosity)


@pytest.mark.parametrize("stored", [False, True], ids=["memory", "sqlite"])
@pytest.mark.parametrize(
    "make_sampler",
    [
        lambda: RandomSampler(seed=0),
        lambda: TPESampler(n_startup_trials=5, seed=0),
        lambda: NSGAIISampler(population_size=6, mutation_prob=0.5, seed=0),
    ],
    ids=["random", "tpe", "nsga2"],
)
def test_optunas_samplers_search_the_space_on_any_storage(
    make_sampler: Callable[[], BaseSampler],
    stored: bool,
    tmp_path: Path,
    optuna_complaints: Callable[[], list[str]],
) -> None:
    suggested: list[Architecture] = []

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        architecture = PAPERS_SPACE.suggest(trial)
        suggested.append(architecture)
        _, capacity = order(architecture)
        return float(sum(capacity)), float(capacity[0] * architecture.input_size.width)

    storage = f"sqlite:///{tmp_path / 'smnas.db'}" if stored else None
    for trials in (18, 12):  # the second time resumes where there is something stored
        study = optuna.create_study(
            study_name="coco/structural",
            storage=storage,
            sampler=make_sampler(),
            directions=["maximize", "minimize"],
            load_if_exists=True,
        )
        seed = Architecture.parse("800x600 ResNet50 FPN(P1-P5,c=256) RPN Cascade(n=3)")
        study.enqueue_trial(PAPERS_SPACE.params(seed))
        study.optimize(objective, n_trials=trials)
        assert seed in suggested[-trials:]
        recorded = [PAPERS_SPACE.suggest(FixedTrial(trial.params)) for trial in study.trials]
        assert recorded == (suggested if stored else suggested[-trials:])
        assert [PAPERS_SPACE.params(architecture) for architecture in recorded] == [
            trial.params for trial in study.trials
        ]
    assert len(set(suggested)) > 10
    assert optuna_complaints() == []


def precedes(one: Architecture, other: Architecture) -> bool:
    (group, vector), (other_group, other_vector) = order(one), order(other)
    return group == other_group and all(a <= b for a, b in zip(vector, other_vector, strict=True))


def at(text: str) -> Architecture:
    return Architecture.parse(text)


ARROWS = {
    "deeper ResNet of basic blocks": ("512x512 ResNet18 RPN 2FC", "512x512 ResNet34 RPN 2FC"),
    "deeper ResNet of bottlenecks": ("512x512 ResNet50 RPN 2FC", "512x512 ResNet101 RPN 2FC"),
    "deeper ResNeXt": ("512x512 ResNeXt50 RPN 2FC", "512x512 ResNeXt101 RPN 2FC"),
    "wider": ("512x512 MobileNetV2(w=32) RPN 2FC", "512x512 MobileNetV2 RPN 2FC"),
    "larger input": ("800x600 ResNet18 RetinaNet", "1080x720 ResNet18 RetinaNet"),
    "wider input": ("512x512 ResNet18 RetinaNet", "600x512 ResNet18 RetinaNet"),
    "higher input": ("512x512 ResNet18 RetinaNet", "512x600 ResNet18 RetinaNet"),
    "a cascade": ("512x512 ResNet18 RPN 2FC", "512x512 ResNet18 RPN Cascade(n=2)"),
    "a longer cascade": ("512x512 ResNet18 GA-RPN Cascade(n=2)", "512x512 ResNet18 GA-RPN Cascade(n=4)"),
    "finer FPN level": ("512x512 ResNet18 FPN(P2-P5,c=256) RPN 2FC", "512x512 ResNet18 FPN(P1-P5,c=256) RPN 2FC"),
    "coarser FPN level": ("512x512 ResNet18 FPN(P2-P5,c=256) RPN 2FC", "512x512 ResNet18 FPN(P2-P6,c=256) RPN 2FC"),
    "FPN levels at both ends": (
        "512x512 ResNet18 FPN(P3-P5,c=8) RetinaNet",
        "512x512 ResNet18 FPN(P1-P6,c=8) RetinaNet",
    ),
    "more FPN inputs": ("512x512 ResNet18 FPN(P2-P3:P2-P5,c=8) RPN 2FC", "512x512 ResNet18 FPN(P2-P5,c=8) RPN 2FC"),
    "more FPN channels": ("512x512 ResNet18 FPN(P2-P5,c=128) RPN 2FC", "512x512 ResNet18 FPN(P2-P5,c=256) RPN 2FC"),
}


@pytest.mark.parametrize(("smaller", "larger"), ARROWS.values(), ids=ARROWS)
def test_an_architecture_precedes_the_larger_one(smaller: str, larger: str) -> None:
    assert precedes(at(smaller), at(larger))
    assert not precedes(at(larger), at(smaller))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("512x512 ResNet34 RPN 2FC", "512x512 ResNet50 RPN 2FC"),
        ("512x512 ResNet50 RPN 2FC", "512x512 ResNeXt50 RPN 2FC"),
        ("512x512 ResNet50 RPN 2FC", "512x512 ResNeXt101 RPN 2FC"),
        ("512x512 MobileNetV2 RPN 2FC", "512x512 ResNet101 RPN 2FC"),
        ("512x512 ResNet18 FPN(P2-P5,c=256) RetinaNet", "512x512 ResNet18 FPN(P2-P5,c=256) RPN Cascade(n=4)"),
        ("512x512 ResNet18 RPN 2FC", "512x512 ResNet18 GA-RPN 2FC"),
        ("512x512 ResNet18 RPN 2FC", "512x512 ResNet18 GA-RPN Cascade(n=4)"),
        ("512x512 ResNet18 RPN 2FC", "512x512 ResNet18 FPN(P3-P3,c=256) RPN 2FC"),
        ("512x512 ResNet18 RPN 2FC", "1333x800 ResNet34 FPN(P1-P6,c=256) RPN 2FC"),
        ("800x600 ResNet34 RPN 2FC", "1080x720 ResNet18 RPN 2FC"),
        ("512x600 ResNet18 RPN 2FC", "600x512 ResNet18 RPN 2FC"),
        ("512x512 ResNet18 FPN(P1-P4,c=8) RPN 2FC", "512x512 ResNet18 FPN(P2-P5,c=8) RPN 2FC"),
        ("512x512 ResNet18 FPN(P2-P3:P2-P6,c=8) RPN 2FC", "512x512 ResNet18 FPN(P2-P5,c=8) RPN 2FC"),
        ("512x512 ResNet18(w=16) FPN(P2-P5,c=64) RPN 2FC", "512x512 ResNet18(w=64) FPN(P2-P5,c=16) RPN 2FC"),
    ],
)
def test_architectures_are_incomparable_where_neither_contains_the_other(one: str, other: str) -> None:
    assert not precedes(at(one), at(other))
    assert not precedes(at(other), at(one))


def test_a_searched_backbone_has_no_place_in_the_structural_order() -> None:
    searched = Architecture(
        InputSize(512, 512), BackboneCode("basicblock", 64, ("1", "21", "21", "12")), None, RPN(), RCNNHead()
    )
    with pytest.raises(TypeError, match="basicblock_64_1-21-21-12"):
        order(searched)


def test_the_vector_determines_an_architecture_within_its_group(papers_architectures: list[Architecture]) -> None:
    places = {order(architecture): architecture for architecture in papers_architectures}
    assert len(places) == len(papers_architectures)
    # 4 block families; one level or FPN; RetinaNet, or RCNN heads after one of two RPNs.
    assert len({group for group, _ in places}) == 4 * 2 * 3


NECKS = [
    None,
    *(
        FPN(*levels, channels=channels)
        for channels in (8, 16)
        for levels in [(2, 3, 3), (2, 3, 5), (1, 3, 5), (2, 4, 5)]
    ),
]
HEADS = [(None, RetinaNetHead()), *((rpn, RCNNHead(n)) for rpn in (RPN(), GuidedAnchoringRPN()) for n in (1, 2, 4))]


@st.composite
def chains(draw: st.DrawFn, length: int) -> list[Architecture]:
    """Draw architectures of which each shares some parts with the one before, so that they are often comparable."""
    parts: list[st.SearchStrategy[Any]] = [
        st.builds(InputSize, st.sampled_from([48, 64]), st.sampled_from([48, 64])),
        st.sampled_from([family(name, width) for name, family in CLASSIC_BACKBONES.items() for width in (16, 64)]),
        st.sampled_from(NECKS),
        st.sampled_from(HEADS),
    ]
    drawn = [draw(part) for part in parts]
    chain = []
    for _ in range(length):
        drawn = [draw(st.just(old) | part) for old, part in zip(drawn, parts, strict=True)]
        size, backbone, neck, (rpn, head) = drawn
        chain.append(Architecture(size, backbone, neck, rpn, head))
    return chain


def contains(larger: Architecture, smaller: Architecture) -> bool:
    """Whether each part of the larger contains that of the smaller, as the docstring of ``order`` defines it."""
    big, small = larger.backbone, smaller.backbone
    assert isinstance(big, ClassicBackbone)
    assert isinstance(small, ClassicBackbone)
    backbone = big.block == small.block and big.depth >= small.depth and big.width >= small.width
    sizes = larger.input_size, smaller.input_size
    size = sizes[0].width >= sizes[1].width and sizes[0].height >= sizes[1].height
    neck = larger.neck is smaller.neck is None or (
        larger.neck is not None
        and smaller.neck is not None
        and set(larger.neck.input_levels) >= set(smaller.neck.input_levels)
        and set(larger.neck.output_levels) >= set(smaller.neck.output_levels)
        and larger.neck.channels >= smaller.neck.channels
    )
    head = larger.rpn == smaller.rpn and (
        not isinstance(larger.head, RCNNHead)
        or not isinstance(smaller.head, RCNNHead)
        or larger.head.stages >= smaller.head.stages
    )
    return backbone and size and neck and head


@settings(max_examples=300)
@given(chains(2))
def test_one_precedes_another_iff_each_part_is_contained(pair: list[Architecture]) -> None:
    for one, other in itertools.product(pair, repeat=2):
        assert precedes(one, other) == contains(other, one)


@settings(max_examples=300)
@given(chains(3))
def test_precedence_is_a_partial_order(architectures: list[Architecture]) -> None:
    for one, two, three in itertools.product(architectures, repeat=3):
        assert precedes(one, one)
        if precedes(one, two) and precedes(two, one):
            assert one == two
        if precedes(one, two) and precedes(two, three):
            assert precedes(one, three)
