"""FPN, and registered necks."""

import re
from collections.abc import Iterator

import optuna
import pytest

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.necks.fpn import FPN
from smnas_optuna.parts.necks.neck import NECKS, register_neck
from smnas_optuna.search_space.structural import StructuralSpace, order
from tests.parts.texts import FPN_LEVELS


def test_every_combination_of_fpn_levels_has_a_text_of_its_own() -> None:
    fpns = [FPN(*levels) for levels in FPN_LEVELS]
    assert len({str(fpn) for fpn in fpns}) == len(fpns) == 40
    assert [FPN.parse(str(fpn)) for fpn in fpns] == fpns


@pytest.mark.parametrize(
    ("text", "neck"),
    [
        ("FPN(P1-P5,c=256)", FPN(1, 4, 5, 256)),
        ("FPN(P2-P3,c=64)", FPN(2, 3, 3, 64)),
        ("FPN(P2-P3:P2-P5,c=64)", FPN(2, 3, 5, 64)),
        ("FPN(P1-P4:P1-P6,c=8)", FPN(1, 4, 6, 8)),
    ],
)
def test_an_fpn_without_input_levels_in_its_text_has_all_output_levels_as_inputs(text: str, neck: FPN) -> None:
    assert FPN.parse(text) == neck


def test_an_fpn_lists_its_input_and_output_levels() -> None:
    neck = FPN(2, 3, 6, 64)
    assert (neck.input_levels, neck.output_levels) == ((2, 3), (2, 3, 4, 5, 6))


class Bottom(FPN):
    NAME = "Bottom-FPN"


@pytest.fixture
def bottom() -> Iterator[type[FPN]]:
    """A neck that is registered during a test."""
    yield register_neck(Bottom)
    del NECKS._families[f"{Bottom.__module__}.{Bottom.__qualname__}"]


def test_a_registered_neck_is_parsed_and_printed_by_its_name(bottom: type[FPN]) -> None:
    for text in ("800x600 ResNet50 Bottom-FPN(P2-P5,c=64) RPN 2FC", "800x600 ResNet50 Bottom-FPN(P3-P3,c=8) RetinaNet"):
        architecture = Architecture.parse(text)
        assert isinstance(architecture.neck, bottom)
        assert str(architecture) == text
    assert Architecture.parse(text).neck != FPN(3, 3, 3, 8)
    with pytest.raises(ValueError, match=re.escape("expected Bottom-FPN([Pa-Pb:]Pa-Pd,c=CHANNELS)")):
        Architecture.parse("800x600 ResNet50 Bottom-FPN(P2-P9) RPN 2FC")


def test_a_neck_that_is_not_registered_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("neck 'Bottom-FPN(P2-P5,c=64)': expected one of ")):
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
    with pytest.raises(ValueError, match=r"found 'BiFPN', expected one of none, CSPNeXtPAFPN, .*Bottom-FPN"):
        StructuralSpace(necks=("BiFPN",))
