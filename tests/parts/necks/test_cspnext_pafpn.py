"""The neck of RTMDet, whose choice in a recipe says how many blocks it has."""

import optuna
import pytest

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.necks.cspnext_pafpn import CSPNeXtPAFPN
from smnas_optuna.parts.necks.neck import NECKS
from smnas_optuna.search_space.structural import StructuralSpace, order


@pytest.mark.parametrize(
    ("text", "neck"),
    [
        ("CSPNeXtPAFPN(P2-P4,c=128)", CSPNeXtPAFPN(2, 4, 4, 128)),
        ("CSPNeXtPAFPN(P1-P1,c=8,n=3)", CSPNeXtPAFPN(1, 1, 1, 8, 3)),
    ],
)
def test_a_text_says_levels_channels_and_blocks(text: str, neck: CSPNeXtPAFPN) -> None:
    assert NECKS.parse(text) == neck
    assert str(neck) == text


@pytest.mark.parametrize("text", ["CSPNeXtPAFPN(P2-P5,c=8)", "CSPNeXtPAFPN(P2-P3:P2-P4,c=8)"])
def test_levels_above_the_inputs_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected output levels that are the input levels"):
        NECKS.parse(text)


def test_a_text_without_its_arguments_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected CSPNeXtPAFPN\(Pa-Pb,c=CHANNELS\[,n=BLOCKS\]\)"):
        NECKS.parse("CSPNeXtPAFPN(n=2)")


def test_a_trial_chooses_its_levels_only() -> None:
    space = StructuralSpace(
        necks=("CSPNeXtPAFPN", "CSPNeXtPAFPN(n=2)"),
        fpn_inputs=("P2-P3", "P2-P4"),
        fpn_channels=64,
        rpns=("none",),
        heads=("RTMDet",),
    )
    assert space.size == 7 * 4 * 2 * 2
    architecture = Architecture.parse("512x512 ResNet18 CSPNeXtPAFPN(P2-P3,c=64,n=2) RTMDet")
    params = space.params(architecture)
    assert params == {
        "backbone": "ResNet18",
        "input_size": "512x512",
        "neck": "CSPNeXtPAFPN(n=2)",
        "fpn_inputs": "P2-P3",
        "head": "RTMDet",
    }
    assert space.suggest(optuna.trial.FixedTrial(params)) == architecture
    with pytest.raises(ValueError, match=r"neck 'CSPNeXtPAFPN\(n=3\)' is not among"):
        space.params(Architecture.parse("512x512 ResNet18 CSPNeXtPAFPN(P2-P3,c=64,n=3) RTMDet"))


def test_more_blocks_are_bigger() -> None:
    one, two = (
        order(Architecture.parse(f"512x512 ResNet18 CSPNeXtPAFPN(P2-P4,c=64{blocks}) RTMDet"))
        for blocks in ("", ",n=2")
    )
    assert one[0] == two[0]
    assert one[1] != two[1]
    assert all(a <= b for a, b in zip(one[1], two[1], strict=True))
