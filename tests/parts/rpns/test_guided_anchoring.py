"""Guided anchoring: training and detection."""

import pytest
import torch
from mmengine.structures import InstanceData
from torch import nn

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.model_config import model_config
from tests.detector.counted_calls import CountedCalls
from tests.parts.detectors import HEIGHT, WIDTH, batch, build, small_config

from mmcv.ops import batched_nms  # isort: skip  # needs the operators that our layers provide


@pytest.mark.parametrize("text", ["GA-RPN 2FC", "GA-RPN Cascade(n=2)", "FPN(P1-P5,c=16) GA-RPN 2FC"])
def test_guided_anchoring_that_finds_nothing_likely_detects_nothing(text: str) -> None:
    model = build(small_config(f"ResNet18(w=16) {text}")).eval()
    nn.init.constant_(model.rpn_head.conv_loc.bias, -20)
    with torch.inference_mode():
        (result,) = model(**batch(model, images=1, training=False), mode="predict")
    assert result.pred_instances.bboxes.shape == (0, 4)
    assert result.pred_instances.scores.shape == result.pred_instances.labels.shape == (0,)


@pytest.mark.parametrize("text", ["GA-RPN 2FC", "FPN(P1-P5,c=16) GA-RPN 2FC"])
def test_guided_anchoring_learns_the_shapes_of_small_and_large_objects(text: str) -> None:
    head = build(small_config(f"ResNet18(w=16) {text}")).rpn_head
    boxes = torch.tensor([[8, 8, 20, 20], [40, 8, 58, 26], [90, 70, 150, 130], [4, 2, 252, 190]]).float()
    strides = [stride for stride, _ in head.square_anchor_generator.strides]
    shapes = [(HEIGHT // stride, WIDTH // stride) for stride in strides]
    metas = [{"img_shape": (HEIGHT, WIDTH), "pad_shape": (HEIGHT, WIDTH)}]
    approximate, inside = head.get_sampled_approxs(shapes, metas, device="cpu")
    squares = [head.square_anchor_generator.grid_priors(shapes, device="cpu")]
    objects = [InstanceData(bboxes=boxes, labels=torch.zeros(4, dtype=torch.long))]
    _, targets, weights, _ = head.ga_shape_targets(approximate, inside, squares, objects, metas)
    taught = torch.cat([target[weight.any(-1)] for target, weight in zip(targets, weights, strict=True)])
    assert {tuple(box) for box in taught.tolist()} == {tuple(box) for box in boxes.tolist()}


def test_boxes_of_all_classes_go_through_one_suppression_with_guided_anchoring() -> None:
    model = model_config(
        Architecture.parse("64x48 ResNet18 FPN(P2-P5,c=16) GA-RPN 2FC"), classes=80, detector=Detector()
    )
    settings = model["test_cfg"]["rcnn"]["nms"]
    torch.manual_seed(0)
    # As many as there are at the most: 300 proposals of 80 classes.
    corners = torch.rand(24_000, 2) * 1000
    boxes = torch.cat([corners, corners + 20 + torch.rand(24_000, 2) * 200], dim=1)
    scores, classes = torch.rand(24_000), torch.arange(24_000) % 80
    with CountedCalls() as counted:
        _, kept = batched_nms(boxes, scores, classes, settings)
    assert counted.calls["torchvision.nms"] == 1
    with CountedCalls() as counted:
        _, class_by_class = batched_nms(boxes, scores, classes, settings | {"split_thr": 10_000})
    assert counted.calls["torchvision.nms"] == 80
    # Boxes of the same score may come in another order.
    assert sorted(kept.tolist()) == sorted(class_by_class.tolist())
