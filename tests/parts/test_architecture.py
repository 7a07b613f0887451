import re
from collections.abc import Callable, Iterator

import optuna
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from smnas_optuna.parts.architecture import (
    FPN,
    NECKS,
    RPN,
    Architecture,
    BackboneCode,
    ClassicBackbone,
    InputSize,
    RCNNHead,
    RetinaNetHead,
    parse_backbone,
    parse_head,
    register_neck,
    stride_of,
)
from smnas_optuna.search_space.structural import StructuralSpace, order

FPN_LEVELS = [
    (first, last_input, last_output)
    for first in range(1, 5)
    for last_input in range(first, 5)
    for last_output in range(last_input, 7)
]
sides = st.integers(1, 4000)
channels = st.integers(1, 4096)
input_sizes = st.builds(InputSize, sides, sides)
classic_backbones = st.builds(ClassicBackbone, st.sampled_from(ClassicBackbone.NAMES), st.just(64) | channels)
stages = st.text("12", min_size=1, max_size=25)
backbone_codes = st.builds(
    BackboneCode, st.sampled_from(BackboneCode.BLOCKS), channels, st.tuples(stages, stages, stages, stages)
)
necks = st.tuples(st.sampled_from(FPN_LEVELS), channels).map(lambda drawn: FPN(*drawn[0], drawn[1]))
rcnn_heads = st.builds(RCNNHead, st.integers(1, 4))


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    head = draw(st.just(RetinaNetHead()) | rcnn_heads)
    rpn = None if isinstance(head, RetinaNetHead) else RPN(draw(st.booleans()))
    neck = draw(st.none() | necks)
    return Architecture(draw(input_sizes), draw(classic_backbones | backbone_codes), neck, rpn, head)


# Few values of every part, so that two draws are often the same architecture.
few_architectures = st.builds(
    lambda size, backbone, levels, proposing: Architecture(
        InputSize(size, size),
        backbone,
        levels and FPN(*levels),
        RPN(proposing == 3) if proposing else None,
        RCNNHead(proposing) if proposing else RetinaNetHead(),
    ),
    st.sampled_from([64, 641]),
    st.sampled_from(
        [
            ClassicBackbone("ResNet18"),
            ClassicBackbone("ResNet18", 1),
            BackboneCode("bottleneck", 61, ("1", "1", "1", "1")),
            BackboneCode("Xbottleneck", 6, ("11", "1", "1", "1")),
        ]
    ),
    st.sampled_from([None, (2, 3, 3), (2, 3, 4), (2, 4, 4)]),
    st.sampled_from([0, 1, 3]),
)


def error_of(text: str) -> str:
    """Return the message with which an architecture is refused."""
    with pytest.raises(ValueError, match=r".") as refused:
        Architecture.parse(text)
    return str(refused.value)


@given(architectures())
def test_the_text_of_an_architecture_parses_to_it(architecture: Architecture) -> None:
    assert Architecture.parse(str(architecture)) == architecture


@given(architectures())
def test_the_text_is_canonical_one_line_with_single_blanks(architecture: Architecture) -> None:
    text = str(architecture)
    assert text == " ".join(text.split())
    assert str(Architecture.parse(text)) == text


@given(few_architectures, few_architectures)
def test_texts_are_equal_exactly_where_architectures_are(one: Architecture, other: Architecture) -> None:
    assert (str(one) == str(other)) == (one == other)
    assert (hash(one) == hash(other)) >= (one == other)


def test_every_combination_of_fpn_levels_has_a_text_of_its_own() -> None:
    fpns = [FPN(*levels) for levels in FPN_LEVELS]
    assert len({str(fpn) for fpn in fpns}) == len(fpns) == 40
    assert [FPN.parse(str(fpn)) for fpn in fpns] == fpns


@pytest.mark.parametrize("name", ClassicBackbone.NAMES)
def test_a_published_backbone_is_written_without_its_width(name: str) -> None:
    assert str(ClassicBackbone(name)) == name
    assert parse_backbone(name) == parse_backbone(f"{name}(w=64)") == ClassicBackbone(name, 64)
    assert parse_backbone(f"{name}(w=16)") == ClassicBackbone(name, 16)


@pytest.mark.parametrize(
    ("text", "neck"),
    [
        ("FPN(P1-P5,c=256)", FPN(1, 4, 5, 256)),
        ("FPN(P2-P3,c=64)", FPN(2, 3, 3, 64)),
        ("FPN(P2-P3:P2-P5,c=64)", FPN(2, 3, 5, 64)),
        ("FPN(P1-P4:P1-P6,c=8)", FPN(1, 4, 6, 8)),
    ],
)
def test_an_fpn_takes_all_levels_that_it_puts_out_unless_it_says_otherwise(text: str, neck: FPN) -> None:
    assert FPN.parse(text) == neck


def test_an_fpn_knows_its_levels() -> None:
    neck = FPN.parse("FPN(P2-P3:P2-P6,c=64)")
    assert (neck.input_levels, neck.output_levels) == ((2, 3), (2, 3, 4, 5, 6))


def test_strides_double_from_level_to_level() -> None:
    assert [stride_of(level) for level in range(1, 7)] == [4, 8, 16, 32, 64, 128]


@pytest.mark.parametrize(
    ("printed", "canonical"),
    [
        (
            "512x512 basicblock_64_1-21-21-12 FPN(P_2-P_5, c=128) RPN 2FC",
            "512x512 basicblock_64_1-21-21-12 FPN(P2-P5,c=128) RPN 2FC",
        ),
        (
            "800x600 basicblock_56_111-2111-2-111112 FPN(P_2-P_5, c=256) RPN 2FC",
            "800x600 basicblock_56_111-2111-2-111112 FPN(P2-P5,c=256) RPN 2FC",
        ),
        (
            "800x600 basicblock_48_12-11111-211-1112 FPN(P_1-P_5, c=128) RPN Cascade(n=3)",
            "800x600 basicblock_48_12-11111-211-1112 FPN(P1-P5,c=128) RPN Cascade(n=3)",
        ),
        (
            "800x600 bottleneck_56_211-111111111-2111111-11112111 FPN(P_1-P_5, c=128) RPN Cascade(n=3)",
            "800x600 bottleneck_56_211-111111111-2111111-11112111 FPN(P1-P5,c=128) RPN Cascade(n=3)",
        ),
        (
            "800x600 Xbottleneck_56_21-21-111111111111111-2111111 FPN(P_1-P_5, c=256) GA-RPN Cascade(n=3)",
            "800x600 Xbottleneck_56_21-21-111111111111111-2111111 FPN(P1-P5,c=256) GA-RPN Cascade(n=3)",
        ),
        (
            "1333x800 Xbottleneck_56_21-21-11111111111111-21111111 FPN(P1 - P5 , c=256) GA-RPN Cascade(n=3)",
            "1333x800 Xbottleneck_56_21-21-11111111111111-21111111 FPN(P1-P5,c=256) GA-RPN Cascade(n=3)",
        ),
        (
            "800x600 basicblock 54 1211-211-1111-12111 FPN(P_1 - P_5 , c=256) RPN Cascade(n = 3)",
            "800x600 basicblock_54_1211-211-1111-12111 FPN(P1-P5,c=256) RPN Cascade(n=3)",
        ),
        ("  800x600\tResNet50( w = 16 )  RPN  2FC\n", "800x600 ResNet50(w=16) RPN 2FC"),
    ],
    ids=["E0", "E1", "E2", "E3", "E4", "E5", "blanks in the code", "blanks all over"],
)
def test_the_papers_spellings_parse_to_the_canonical_text(printed: str, canonical: str) -> None:
    assert str(Architecture.parse(printed)) == canonical


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("800 ResNet50 RPN 2FC", "input size '800': expected WIDTHxHEIGHT"),
        ("0x600 ResNet50 RPN 2FC", "input size '0x600': expected WIDTHxHEIGHT"),
        ("800X600 ResNet50 RPN 2FC", "input size '800X600': expected WIDTHxHEIGHT"),
        ("800x600 ResNet20 RPN 2FC", "backbone 'ResNet20': expected one of ResNet18, "),
        ("800x600 resnet50 RPN 2FC", "backbone 'resnet50': expected one of ResNet18, "),
        ("800x600 ResNet50(w=0) RPN 2FC", "backbone 'ResNet50(w=0)': expected one of ResNet18, "),
        ("800x600 ResNet50(16) RPN 2FC", "backbone 'ResNet50(16)': expected one of ResNet18, "),
        ("800x600 ResNet50 FPN RPN 2FC", "neck 'FPN': expected FPN([Pa-Pb:]Pa-Pd,c=CHANNELS)"),
        ("800x600 ResNet50 fpn(P1-P5,c=256) RPN 2FC", "neck 'fpn(P1-P5,c=256)': expected FPN("),
        ("800x600 ResNet50 PAFPN(P2-P5,c=256) RetinaNet", "neck 'PAFPN(P2-P5,c=256)': expected FPN("),
        ("800x600 ResNet50 SSDNeck RPN 2FC", "neck 'SSDNeck': expected FPN("),
        ("800x600 ResNet50 FPN(P1-P5) RPN 2FC", "neck 'FPN(P1-P5)': expected FPN("),
        ("800x600 ResNet50 FPN(P1-P5,c=0) RPN 2FC", "neck 'FPN(P1-P5,c=0)': expected FPN("),
        ("800x600 ResNet50 FPN(P1-P3:P2-P5,c=8) RPN 2FC", "neck 'FPN(P1-P3:P2-P5,c=8)': expected FPN("),
        ("800x600 ResNet50 FPN(P0-P5,c=8) RPN 2FC", "neck FPN(P0-P5,c=8): expected input levels"),
        ("800x600 ResNet50 FPN(P1-P7,c=8) RPN 2FC", "neck FPN(P1-P7,c=8): expected input levels"),
        ("800x600 ResNet50 FPN(P3-P2,c=8) RPN 2FC", "neck FPN(P3-P2,c=8): expected input levels"),
        ("800x600 ResNet50 FPN(P2-P4:P2-P3,c=8) RPN 2FC", "neck FPN(P2-P4:P2-P3,c=8): expected input levels"),
        ("800x600 ResNet50 FPN(P5-P6,c=8) RPN 2FC", "neck FPN(P5-P6,c=8): expected input levels"),
        ("800x600 ResNet50 FPN(P1-P5,c=8) GARPN 2FC", "RPN 'GARPN': expected RPN or GA-RPN"),
        ("800x600 ResNet50 rpn 2FC", "RPN 'rpn': expected RPN or GA-RPN"),
        ("800x600 ResNet50 RPN 3FC", "head '3FC': expected RetinaNet, 2FC or Cascade(n=2)"),
        ("800x600 ResNet50 RPN Cascade(n=1)", "head 'Cascade(n=1)': expected RetinaNet, 2FC or Cascade(n=2)"),
        ("800x600 ResNet50 RPN Cascade(n=5)", "head 'Cascade(n=5)': expected RetinaNet, 2FC or Cascade(n=2)"),
        ("800x600 ResNet50 FPN(P1-P5,c=8) RPN RPN 2FC", "'RPN' is one part too many"),
        ("800x600 2FC", "architecture '800x600 2FC': expected INPUT_SIZE BACKBONE [NECK] [RPN] HEAD"),
        ("", "architecture '': expected INPUT_SIZE BACKBONE [NECK] [RPN] HEAD"),
    ],
)
def test_a_wrong_part_is_named_with_what_was_expected(text: str, named: str) -> None:
    assert named in error_of(text)


@pytest.mark.parametrize(
    ("text", "head"),
    [("800x600 ResNet50 RPN RetinaNet", "RetinaNet"), ("800x600 ResNet50 FPN(P1-P5,c=8) 2FC", "2FC")],
)
def test_retinanet_alone_goes_without_an_rpn(text: str, head: str) -> None:
    message = error_of(text)
    assert text in message
    assert "RetinaNet goes with no RPN, every other head needs one" in message


@pytest.mark.parametrize(
    ("code", "position", "found", "expected"),
    [
        ("basicblok_64_1-1-1-1", None, "basicblok_64_1-1-1-1", "expected one of ResNet18"),
        ("basicblock", 11, "the end", "'_'"),
        ("basicblock64_1-1-1-1", 11, "'6'", "'_'"),
        ("basicblock_0_1-1-1-1", 12, "'0'", "the base channels"),
        ("basicblock_x_1-1-1-1", 12, "'x'", "the base channels"),
        ("basicblock_5x_1-1-1-1", 13, "'x'", "'_'"),
        ("bottleneck_56_311-1-1-1", 15, "'3'", "a digit 1 or 2"),
        ("bottleneck_56_131-1-1-1", 16, "'3'", "'-'"),
        ("bottleneck_56_1--1-1", 17, "'-'", "a digit 1 or 2"),
        ("Xbottleneck_56_1-1-1", 21, "the end", "'-'"),
        ("Xbottleneck_56_1-1-1-", 22, "the end", "a digit 1 or 2"),
        ("MBblock_56_1-1-1-1-1", 19, "'-'", "the end"),
        ("MBblock_56_1-1-1-10", 19, "'0'", "the end"),
        ("MBblock_56_1-1-1-1,", 19, "','", "the end"),
    ],
)
def test_an_error_in_a_backbone_code_is_pointed_at(code: str, position: int | None, found: str, expected: str) -> None:
    message = error_of(f"800x600 {code} RPN 2FC")
    place = f"at character {position} found {found}, expected" if position else found
    assert place in message
    assert code in message
    assert expected in message


def test_an_error_in_a_code_written_with_blanks_is_pointed_at() -> None:
    assert "at character 15 found '3', expected a digit" in error_of("800x600 basicblock 54 3211-1-1-1 RPN 2FC")


@given(backbone_codes, st.data())
def test_the_first_foreign_character_of_a_code_is_the_one_pointed_at(code: BackboneCode, data: st.DataObject) -> None:
    text = str(code)
    place = data.draw(st.integers(len(code.block), len(text) - 1))
    foreign = data.draw(st.sampled_from("x3.,+é"))
    assume(foreign != "3" or text[:place].count("_") != 1)  # else a base still
    broken = text[:place] + foreign + text[place + 1 :]
    with pytest.raises(ValueError, match=re.escape(f"at character {place + 1} found {foreign!r}")):
        BackboneCode.parse(broken)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InputSize(0, 600), "input size 0x600"),
        (lambda: InputSize(800, -1), "input size 800x-1"),
        (lambda: ClassicBackbone("VGG16"), "backbone 'VGG16'"),
        (lambda: ClassicBackbone("ResNet50", 0), "backbone ResNet50: width 0"),
        (lambda: BackboneCode("block", 64, ("1", "1", "1", "1")), "block 'block'"),
        (lambda: BackboneCode("basicblock", 0, ("1", "1", "1", "1")), "base 0"),
        (lambda: BackboneCode("basicblock", 64, ("1", "", "1", "1")), "four stages"),
        (lambda: BackboneCode("basicblock", 64, ("1", "13", "1", "1")), "four stages"),
        (lambda: BackboneCode("basicblock", 64, ("1", "1\n", "1", "1")), "four stages"),
        (lambda: FPN(1, 5, 5), "input levels"),
        (lambda: FPN(2, 4, 3), "input levels"),
        (lambda: FPN(1, 4, 5, 0), "0 is not a positive number of channels"),
        (lambda: RCNNHead(0), "2 to 4 stages, not 0"),
        (lambda: RCNNHead(5), "2 to 4 stages, not 5"),
        (lambda: RPN.parse("none"), "RPN 'none'"),
        (lambda: parse_head("Cascade"), "head 'Cascade'"),
    ],
)
def test_a_part_out_of_range_cannot_be_made(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("basic", ("ResNet18", "ResNet34")),
        ("bottleneck", ("ResNet50", "ResNet101")),
        ("ResNeXt", ("ResNeXt50", "ResNeXt101")),
        ("inverted residual", ("MobileNetV2",)),
    ],
)
def test_backbones_of_one_block_differ_in_depth(family: str, names: tuple[str, ...]) -> None:
    members = [ClassicBackbone(name) for name in ClassicBackbone.NAMES if ClassicBackbone(name).block == family]
    assert tuple(member.name for member in sorted(members, key=lambda member: member.depth)) == names


class Bottom(FPN):
    NAME = "Bottom-FPN"


@pytest.fixture
def bottom() -> Iterator[type[FPN]]:
    """A neck of one's own, registered for a test."""
    yield register_neck(Bottom)
    del NECKS["Bottom-FPN"]


def test_a_registered_neck_is_parsed_and_printed_by_its_name(bottom: type[FPN]) -> None:
    for text in ("800x600 ResNet50 Bottom-FPN(P2-P5,c=64) RPN 2FC", "800x600 ResNet50 Bottom-FPN(P3-P3,c=8) RetinaNet"):
        architecture = Architecture.parse(text)
        assert isinstance(architecture.neck, bottom)
        assert str(architecture) == text
    assert Architecture.parse(text).neck != FPN(3, 3, 3, 8)
    with pytest.raises(ValueError, match=re.escape("expected Bottom-FPN([Pa-Pb:]Pa-Pd,c=CHANNELS)")):
        Architecture.parse("800x600 ResNet50 Bottom-FPN(P2-P9) RPN 2FC")


def test_a_neck_that_is_not_registered_is_none() -> None:
    with pytest.raises(ValueError, match=re.escape("neck 'Bottom-FPN(P2-P5,c=64)': expected FPN(")):
        Architecture.parse("800x600 ResNet50 Bottom-FPN(P2-P5,c=64) RPN 2FC")


def test_two_necks_cannot_share_a_name(bottom: type[FPN]) -> None:
    class Other(FPN):
        NAME = "Bottom-FPN"

    with pytest.raises(ValueError, match=r"Bottom has this name already"):
        register_neck(Other)
    # The same module imported twice is no other class.
    assert register_neck(bottom) is bottom

    class Wrong(FPN):
        NAME = "my neck"

    with pytest.raises(ValueError, match="expected a name of letters, digits and '-'"):
        register_neck(Wrong)


def test_a_space_offers_registered_necks_beside_the_fpn(bottom: type[FPN]) -> None:
    space = StructuralSpace(necks=("FPN", "Bottom-FPN"))
    assert space.size == 2 * StructuralSpace(necks=("FPN",)).size
    architecture = Architecture.parse("800x600 ResNet50 Bottom-FPN(P2-P5,c=256) RPN 2FC")
    assert space.suggest(optuna.trial.FixedTrial(space.params(architecture))) == architecture
    # Neither kind is the bigger one.
    plain = Architecture.parse("800x600 ResNet50 FPN(P2-P5,c=256) RPN 2FC")
    assert order(architecture)[0] != order(plain)[0]
    assert order(architecture)[1] == order(plain)[1]
    with pytest.raises(ValueError, match="found 'PAFPN', expected one of none, FPN, Bottom-FPN"):
        StructuralSpace(necks=("PAFPN",))
