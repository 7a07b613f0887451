"""RCNN heads: the levels that regions are pooled from, and the training of a cascade."""

import math
from typing import Any

import pytest
import torch

from smnas_optuna.detector.counting import build_on_meta
from tests.parts.detectors import small_config


@pytest.mark.parametrize("levels", ["P1-P4", "P2-P4", "P3-P4", "P1-P2", "P1-P3:P1-P6", "P2-P3:P2-P5"])
def test_regions_are_pooled_from_the_level_of_equation_1_of_fpn(levels: str) -> None:
    model: Any = build_on_meta(small_config(f"ResNet18 FPN({levels},c=16) RPN 2FC"))
    extractor = model.roi_head.bbox_roi_extractor
    strides = extractor.featmap_strides
    sides = torch.tensor([8, 32, 100, 111, 113, 180, 223, 225, 400, 447, 449, 900]).float()
    rois = torch.stack([torch.zeros(12), torch.zeros(12), torch.zeros(12), sides, sides], dim=1)
    ideal = [2 ** math.floor(4 + math.log2(side / 224)) for side in sides.tolist()]  # of 224 pixels: stride 16
    expected = [min(max(stride, strides[0]), strides[-1]) for stride in ideal]
    assert [strides[level] for level in extractor.map_roi_levels(rois, len(strides))] == expected


def test_a_shorter_cascade_has_the_first_stages_of_a_longer_one() -> None:
    def stages(head: str) -> list[tuple[Any, ...]]:
        config = small_config(f"ResNet18 FPN(P1-P5,c=16) RPN {head}")
        heads, settings = config["roi_head"]["bbox_head"], config["train_cfg"]["rcnn"]
        weights = config["roi_head"]["stage_loss_weights"]
        overlaps = [stage["assigner"]["pos_iou_thr"] for stage in settings]
        spreads = [stage["bbox_coder"]["target_stds"] for stage in heads]
        assert config["roi_head"]["num_stages"] == len(heads)
        return list(zip(overlaps, weights, spreads, heads, settings, strict=True))

    longest = stages("Cascade(n=4)")
    assert [stage[0] for stage in longest] == [0.5, 0.6, 0.7, 0.75]
    assert [stage[1] for stage in longest] == [1, 0.5, 0.25, 0.125]
    assert [stage[2][0] for stage in longest] == [0.1, 0.05, 0.033, 0.025]
    assert stages("Cascade(n=3)") == longest[:3]
    assert stages("Cascade(n=2)") == longest[:2]
