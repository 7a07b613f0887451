"""Backbone codes: their errors, and their networks in a detector."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from smnas_optuna.detector.counting import build_on_meta
from smnas_optuna.parts.architecture import Architecture, InputSize
from smnas_optuna.parts.backbones.searched import BackboneCode
from smnas_optuna.parts.heads.head import HEADS
from smnas_optuna.parts.levels import SINGLE_LEVEL
from smnas_optuna.parts.model_config import model_config
from smnas_optuna.parts.rpns.rpn import RPN
from tests.detector.test_backbone import backbone_codes as codes_with_bases
from tests.parts.detectors import NECKS, SMALL, build, small_config
from tests.parts.texts import backbone_codes, error_of


@pytest.mark.parametrize(
    ("code", "position", "found", "expected"),
    [
        ("basicblok_64_1-1-1-1", None, "basicblok_64_1-1-1-1", "expected one of CSPNeXt-tiny"),
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
def test_the_error_of_a_code_has_its_position(code: str, position: int | None, found: str, expected: str) -> None:
    message = error_of(f"800x600 {code} RPN 2FC")
    place = f"at character {position} found {found}, expected" if position else found
    assert place in message
    assert code in message
    assert expected in message


def test_the_error_of_a_code_with_spaces_has_its_position() -> None:
    assert "at character 15 found '3', expected a digit" in error_of("800x600 basicblock 54 3211-1-1-1 RPN 2FC")


@given(backbone_codes, st.data())
def test_the_error_of_a_code_points_at_the_first_wrong_character(code: BackboneCode, data: st.DataObject) -> None:
    text = str(code)
    place = data.draw(st.integers(len(code.block), len(text) - 1))
    foreign = data.draw(st.sampled_from("x3.,+é"))
    assume(foreign != "3" or text[:place].count("_") != 1)  # else a base still
    broken = text[:place] + foreign + text[place + 1 :]
    with pytest.raises(ValueError, match=re.escape(f"at character {place + 1} found {foreign!r}")):
        BackboneCode.read(broken)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(code=codes_with_bases(st.integers(2, 64).map(lambda half: 2 * half)), neck_number=st.integers(0, len(NECKS) - 1))
def test_neck_and_heads_expect_the_channels_that_a_code_has(code: BackboneCode, neck_number: int) -> None:
    neck = NECKS[neck_number]
    architecture = Architecture(InputSize(64, 64), code, neck, RPN(), HEADS.parse("2FC"))
    model: Any = build_on_meta(model_config(architecture, classes=3, detector=SMALL)).eval()
    levels = model.backbone(torch.empty(1, 3, 64, 64, device="meta"))
    if neck:
        assert [level.size(1) for level in levels] == model.neck.in_channels
    else:
        assert [level.size(1) for level in levels] == [model.rpn_head.in_channels]
    assert len(model.backbone.res_layers) == (neck.last_input if neck else SINGLE_LEVEL)


def test_a_searched_backbone_starts_from_given_weights_and_freezes_what_a_classic_one_freezes(
    tmp_path: Path,
) -> None:
    text = "bottleneck_8_1-21-21-12 FPN(P1-P4,c=16) RPN 2FC"
    source = build(small_config(text)).backbone
    for tensor in source.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 0.5)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    backbone = build(small_config(text, weights=str(tmp_path / "weights.pth"))).backbone.train()
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in backbone.state_dict().items())
    kept = {name.partition(".")[0] for name, one in backbone.named_parameters() if not one.requires_grad}
    assert kept == {*backbone.stem_layers, backbone.res_layers[0]}
    assert not [layer for layer in backbone.modules() if isinstance(layer, torch.nn.BatchNorm2d) and layer.training]
