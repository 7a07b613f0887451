"""The anchors of RPNs and of RetinaNet."""

import torch
from mmdet.registry import TASK_UTILS

from tests.parts.detectors import small_config


def test_one_level_has_anchors_of_all_the_sizes_that_a_pyramid_has() -> None:
    def sides(text: str) -> set[float]:
        model = small_config(f"ResNet18 {text}", anchor_scale=8)
        head = model.get("rpn_head") or model["bbox_head"]
        anchors = TASK_UTILS.build(head["anchor_generator"]).base_anchors
        widths = torch.cat([(one[:, 2] - one[:, 0]) * (one[:, 3] - one[:, 1]) for one in anchors]).sqrt()
        return {round(float(side), 2) for side in widths}

    assert sides("RPN 2FC") == sides("FPN(P1-P5,c=16) RPN 2FC") == sides("RetinaNet") == {32, 64, 128, 256, 512}
    assert sides("RetinaNet") < sides("FPN(P2-P6,c=16) RetinaNet")
    assert sides("FPN(P3-P3,c=16) RPN 2FC") == {128}  # a level more has to mean a size more, as the order says
