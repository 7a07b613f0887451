"""Architectures and their texts."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smnas_optuna.parts.architecture import Architecture, InputSize
from smnas_optuna.parts.backbones.resnet import ResNet
from smnas_optuna.parts.backbones.searched import BackboneCode
from smnas_optuna.parts.heads.head import HEADS
from smnas_optuna.parts.heads.rcnn import RCNNHead
from smnas_optuna.parts.heads.retinanet import RetinaNetHead
from smnas_optuna.parts.necks.fpn import FPN
from smnas_optuna.parts.rpns.guided_anchoring import GuidedAnchoringRPN
from smnas_optuna.parts.rpns.rpn import RPN, RPNS
from tests.parts.texts import CLASSIC_BACKBONES, FPN_LEVELS, backbone_codes, channels, error_of

sides = st.integers(1, 4000)
input_sizes = st.builds(InputSize, sides, sides)
classic_backbones = st.builds(
    lambda name, width: CLASSIC_BACKBONES[name](name, width),
    st.sampled_from(list(CLASSIC_BACKBONES)),
    st.just(64) | channels,
)
necks = st.tuples(st.sampled_from(FPN_LEVELS), channels).map(lambda drawn: FPN(*drawn[0], drawn[1]))
rcnn_heads = st.builds(RCNNHead, st.integers(1, 4))


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    head = draw(st.just(RetinaNetHead()) | rcnn_heads)
    rpn = None if isinstance(head, RetinaNetHead) else draw(st.sampled_from([RPN(), GuidedAnchoringRPN()]))
    neck = draw(st.none() | necks)
    return Architecture(draw(input_sizes), draw(classic_backbones | backbone_codes), neck, rpn, head)


# Few values of every part, so that two draws are often the same architecture.
few_architectures = st.builds(
    lambda size, backbone, levels, proposing: Architecture(
        InputSize(size, size),
        backbone,
        levels and FPN(*levels),
        (GuidedAnchoringRPN() if proposing == 3 else RPN()) if proposing else None,
        RCNNHead(proposing) if proposing else RetinaNetHead(),
    ),
    st.sampled_from([64, 641]),
    st.sampled_from(
        [
            ResNet("ResNet18"),
            ResNet("ResNet18", 1),
            BackboneCode("bottleneck", 61, ("1", "1", "1", "1")),
            BackboneCode("Xbottleneck", 6, ("11", "1", "1", "1")),
        ]
    ),
    st.sampled_from([None, (2, 3, 3), (2, 3, 4), (2, 4, 4)]),
    st.sampled_from([0, 1, 3]),
)


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
        ("800x600 ResNet20 RPN 2FC", "backbone 'ResNet20': expected one of CSPNeXt-tiny, "),
        ("800x600 resnet50 RPN 2FC", "backbone 'resnet50': expected one of CSPNeXt-tiny, "),
        ("800x600 ResNet50(w=0) RPN 2FC", "backbone 'ResNet50(w=0)': expected one of CSPNeXt-tiny, "),
        ("800x600 ResNet50(16) RPN 2FC", "backbone 'ResNet50(16)': expected one of CSPNeXt-tiny, "),
        ("800x600 ResNet50 FPN RPN 2FC", "neck 'FPN': expected FPN([Pa-Pb:]Pa-Pd,c=CHANNELS)"),
        ("800x600 ResNet50 fpn(P1-P5,c=256) RPN 2FC", "neck 'fpn(P1-P5,c=256)': expected one of CSPNeXtPAFPN("),
        ("800x600 ResNet50 BiFPN(P2-P5,c=256) RetinaNet", "neck 'BiFPN(P2-P5,c=256)': expected one of CSPNeXtPAFPN("),
        ("800x600 ResNet50 SSDNeck RPN 2FC", "neck 'SSDNeck': expected one of CSPNeXtPAFPN("),
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
        ("800x600 ResNet50 RPN 3FC", "head '3FC': expected one of ATSS, FCOS, GFL, 2FC, "),
        (
            "800x600 ResNet50 RPN Cascade(n=1)",
            "head 'Cascade(n=1)': expected one of ATSS, FCOS, GFL, 2FC, ",
        ),
        (
            "800x600 ResNet50 RPN Cascade(n=5)",
            "head 'Cascade(n=5)': expected one of ATSS, FCOS, GFL, 2FC, ",
        ),
        ("800x600 ResNet50 FPN(P1-P5,c=8) RPN RPN 2FC", "'RPN' is one part too many"),
        ("800x600 2FC", "architecture '800x600 2FC': expected INPUT_SIZE BACKBONE [NECK] [RPN] HEAD"),
        ("", "architecture '': expected INPUT_SIZE BACKBONE [NECK] [RPN] HEAD"),
    ],
)
def test_a_wrong_part_is_named_with_what_was_expected(text: str, named: str) -> None:
    assert named in error_of(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("800x600 ResNet50 RPN RetinaNet", "RetinaNet has no RPN"),
        ("800x600 ResNet50 FPN(P1-P5,c=8) 2FC", "2FC needs an RPN"),
        ("640x640 CSPNeXt-s CSPNeXtPAFPN(P2-P4,c=128) GA-RPN RTMDet", "RTMDet has no RPN"),
    ],
)
def test_a_one_stage_head_alone_goes_without_an_rpn(text: str, reason: str) -> None:
    assert error_of(text) == f"architecture {text}: {reason}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InputSize(0, 600), "input size 0x600"),
        (lambda: InputSize(800, -1), "input size 800x-1"),
        (lambda: ResNet("VGG16"), "backbone 'VGG16'"),
        (lambda: ResNet("ResNet50", 0), "backbone ResNet50: width 0"),
        (lambda: BackboneCode("block", 64, ("1", "1", "1", "1")), "block 'block'"),
        (lambda: BackboneCode("basicblock", 0, ("1", "1", "1", "1")), "base 0"),
        (lambda: BackboneCode("basicblock", 64, ("1", "", "1", "1")), "four stages"),
        (lambda: BackboneCode("basicblock", 64, ("1", "13", "1", "1")), "four stages"),
        (lambda: BackboneCode("basicblock", 64, ("1", "1\n", "1", "1")), "four stages"),
        (lambda: FPN(1, 5, 5), "input levels"),
        (lambda: FPN(2, 4, 3), "input levels"),
        (lambda: FPN(1, 4, 5, 0), "0 is not a positive number of channels"),
        (lambda: RCNNHead(0), "found a cascade of 0 stages, expected 2 to 4"),
        (lambda: RCNNHead(5), "found a cascade of 5 stages, expected 2 to 4"),
        (lambda: RPNS.parse("none"), "RPN 'none'"),
        (lambda: HEADS.parse("Cascade"), "head 'Cascade'"),
    ],
)
def test_a_part_out_of_range_cannot_be_made(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
