"""RetinaNet's head."""

import pytest

from tests.parts.detectors import small_config


@pytest.mark.parametrize(
    ("text", "channels"),
    [
        ("ResNet50 FPN(P2-P6,c=48)", 48),
        ("ResNet50 FPN(P2-P6,c=512)", 512),
        ("ResNet50", 256),
        ("MBblock_16_1-2-2-2", 64),
    ],
)
def test_retinanets_branches_are_as_wide_as_the_neck_and_256_at_most_without_one(text: str, channels: int) -> None:
    assert small_config(f"{text} RetinaNet")["bbox_head"]["feat_channels"] == channels
