"""Heads with inner layers of another width."""

from typing import Any

import pytest

from smnas_optuna.parts.heads.head import HEADS
from tests.parts.detectors import small_config

TEXTS = ["RetinaNet", "FCOS", "ATSS", "GFL", "RTMDet", "2FC", "Cascade(n=3)"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_head_has_its_width_in_its_text_unless_it_is_the_published_one(text: str) -> None:
    head = HEADS.parse(text)
    narrow, same = head.with_width(0.25), head.with_width(1.0)
    assert narrow is not None
    assert (same, HEADS.parse(str(narrow))) == (head, narrow)
    assert str(narrow) == (f"{text[:-1]},w=0.25)" if text.endswith(")") else f"{text}(w=0.25)")
    (kind, small), (same_kind, large) = narrow.place, head.place
    assert kind == same_kind
    assert small < large
    assert HEADS.family(str(narrow)) is type(head)
    with pytest.raises(ValueError, match="width 0, expected more than 0"):
        head.with_width(0)


def inner(text: str) -> int:
    config: dict[str, Any] = small_config(f"ResNet18 FPN(P2-P5,c=48) {text}")
    if "roi_head" not in config:
        return int(config["bbox_head"]["feat_channels"])
    head = config["roi_head"]["bbox_head"]
    return int((head[0] if isinstance(head, list) else head)["fc_out_channels"])


@pytest.mark.parametrize("text", ["ATSS{}", "RTMDet{}", "RPN 2FC{}"])
def test_inner_layers_have_a_multiple_of_eight_channels(text: str) -> None:
    published = inner(text.format(""))
    assert inner(text.format("(w=1)")) == published
    assert inner(text.format("(w=0.5)")) == 8 * round(published / 16)
    assert inner(text.format("(w=0.001)")) == 8
    assert inner(text.format("(w=2)")) == 2 * published
