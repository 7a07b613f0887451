"""Our layers, compared with those that they vary."""

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope

from smnas_optuna.detector.layers import (
    DividingGroupNorm,
    ExactRoIExtractor,
    LenientGARPNHead,
    NormalizedGARPNHead,
    NormalizedRPNHead,
    TruncatedMobileNetV2,
)
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.model_config import model_config
from tests.detector.training_step import measured_memory

from mmdet.models.backbones import MobileNetV2  # isort: skip  # needs the operators that our layers provide
from mmdet.models.dense_heads import RPNHead  # isort: skip  # as well


def run_python(program: str) -> str:
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.strip()


def test_importing_the_layers_makes_mmcv_ops_and_searched_backbones_available_in_a_fresh_process() -> None:
    program = (
        "import smnas_optuna.detector.layers, torch, mmcv.ops, mmdet.registry;"
        "boxes = torch.tensor([[0., 0, 9, 9], [1, 0, 9, 9], [20, 20, 30, 30]]);"
        "print(mmcv.ops.nms(boxes, torch.tensor([.9, .8, .7]), 0.5)[1].tolist());"
        "print('SearchedBackbone' in mmdet.registry.MODELS)"
    )
    assert run_python(program).split("\n") == ["[0, 2]", "True"]


@pytest.mark.parametrize("channels", [64, 128, 192, 256, 512, 1024, 2048])
def test_widths_of_published_networks_keep_32_groups(channels: int) -> None:
    assert DividingGroupNorm(channels).num_groups == 32


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (2, 1), (8, 4), (16, 8), (24, 8), (27, 1), (32, 16), (48, 16), (56, 8), (72, 8), (96, 32), (144, 16)],
)
def test_other_widths_get_fewer_groups(channels: int, groups: int) -> None:
    assert DividingGroupNorm(channels).num_groups == groups


@given(channels=st.integers(1, 2048), num_groups=st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_groups_divide_the_channels_and_have_at_least_two(channels: int, num_groups: int) -> None:
    groups = DividingGroupNorm(channels, num_groups).num_groups
    assert 1 <= groups <= num_groups
    assert channels % groups == 0
    assert channels // groups >= min(2, channels)


def test_normalises_like_torch() -> None:
    torch.manual_seed(0)
    layer = DividingGroupNorm(48, eps=1e-3)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    features = torch.randn(2, 48, 5, 3)
    torch.testing.assert_close(layer(features), F.group_norm(features, 16, layer.weight, layer.bias, eps=1e-3))


@pytest.mark.parametrize("channels", [8, 16, 32])
def test_a_map_of_one_pixel_does_not_become_zero(channels: int) -> None:
    torch.manual_seed(0)
    assert DividingGroupNorm(channels)(torch.randn(1, channels, 1, 1)).abs().min() > 0.1


@pytest.mark.parametrize("indices", [[1], [2], [4], [6], [1, 2], [2, 4], [1, 2, 4, 6], [7]])
def test_a_truncated_mobilenet_returns_the_same_features(indices: list[int]) -> None:
    torch.manual_seed(0)
    whole = MobileNetV2(widen_factor=0.25, out_indices=indices)
    truncated = TruncatedMobileNetV2(widen_factor=0.25, out_indices=indices)
    missing, unexpected = truncated.load_state_dict(whole.state_dict(), strict=False)
    assert missing == []
    last = max(indices)
    behind = {*(f"layer{index + 1}" for index in range(last + 1, 7)), *(["conv2"] if last < 7 else [])}
    assert {name.split(".")[0] for name in unexpected} == behind
    assert {name.split(".")[0] for name in truncated.state_dict()}.isdisjoint(behind)
    images = torch.randn(2, 3, 64, 32)
    outputs, expected = truncated(images), whole(images)
    assert len(outputs) == len(indices)
    assert all(torch.equal(one, other) for one, other in zip(outputs, expected, strict=True))


ANCHORS = {
    "approx_anchor_generator": {
        "type": "AnchorGenerator",
        "octave_base_scale": 8,
        "scales_per_octave": 3,
        "ratios": [0.5, 1.0, 2.0],
        "strides": [4],
    },
    "square_anchor_generator": {"type": "AnchorGenerator", "ratios": [1.0], "scales": [8], "strides": [4]},
}


@pytest.mark.parametrize(
    ("kind", "plain", "settings"),
    [(NormalizedRPNHead, RPNHead, {}), (NormalizedGARPNHead, LenientGARPNHead, {**ANCHORS, "deform_groups": 1})],
)
@pytest.mark.parametrize("conv_cfg", [None, {"type": "ConvWS"}])
def test_a_normalized_rpn_is_a_plain_one_with_a_normalized_convolution(
    kind: Any, plain: Any, settings: dict[str, Any], conv_cfg: dict[str, str] | None
) -> None:
    norm_cfg = {"type": "mmdet.DividingGroupNorm", "num_groups": 4}
    ours = build_head(kind, conv_cfg=conv_cfg, norm_cfg=norm_cfg, **settings)
    theirs = build_head(plain, **settings)
    layer = ours.rpn_conv
    torch.nn.init.normal_(layer.norm.bias)
    assert layer.conv.bias is None
    weight = layer.conv.weight
    if conv_cfg:
        flat = weight.flatten(1)
        weight = (weight - flat.mean(1).view(-1, 1, 1, 1)) / (flat.std(1).view(-1, 1, 1, 1) + 1e-5)
    features = torch.randn(2, 8, 6, 5)
    normalised = F.group_norm(F.conv2d(features, weight, padding=1), 4, layer.norm.weight, layer.norm.bias)
    # Behind its first convolution, here made an identity, the plain head is the same: ReLU and so on.
    theirs.rpn_conv = torch.nn.Identity()
    rest = {name: one for name, one in ours.state_dict().items() if not name.startswith("rpn_conv")}
    theirs.load_state_dict(rest)
    for outputs, expected in zip(ours([features]), theirs([normalised]), strict=True):
        torch.testing.assert_close(outputs[0], expected[0])


def build_head(kind: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        head = kind(in_channels=8, feat_channels=8, **settings)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head.train()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_regions_keep_their_level_and_position_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        layer = {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 2}
        extractor = ExactRoIExtractor(layer, out_channels=4, featmap_strides=[4, 8, 16, 32])
    # Levels that say which they are, in a slope over the image's width.
    levels = [
        torch.linspace(number, number + 1, 1600 // stride).expand(1, 4, 320 // stride, -1).contiguous()
        for number, stride in enumerate([4, 8, 16, 32])
    ]
    # 300 and 500 pixels wide and high, and at a column that half precision does not hold.
    rois = torch.tensor([[0, 10, 5, 310, 305], [0, 1049.3, 0, 1559.3, 310], [0, 1101.7, 10, 1201.7, 110]])
    exact = extractor(tuple(levels), rois)
    found = extractor(tuple(level.to(dtype) for level in levels), rois)
    assert found.dtype == dtype
    assert torch.equal(exact.mean(dim=(1, 2, 3)).floor(), torch.tensor([2.0, 2.0, 0.0]))
    # What is left is the rounding of the features themselves.
    torch.testing.assert_close(found.float(), exact, atol=0.002, rtol=0)


@pytest.mark.parametrize("rpn", ["RPN", "GA-RPN"])
def test_proposals_are_computed_in_full_precision_from_outputs_in_half(rpn: str) -> None:
    torch.manual_seed(0)
    architecture = Architecture.parse(f"1333x800 ResNet18(w=4) FPN(P2-P4,c=8) {rpn} 2FC")
    config = model_config(architecture, classes=2, detector=Detector(roi_samples=4, fc_channels=8, proposals=100))
    with DefaultScope.overwrite_default_scope("mmdet"):
        head = MODELS.build(ConfigDict(config)).rpn_head
    features = [torch.rand(1, 8, 800 // stride, 1344 // stride) for stride in (8, 16, 32)]
    with torch.inference_mode():
        outputs = [[level.half() for level in levels] for levels in head(features)]
        meta = {"img_shape": (800, 1333), "scale_factor": (1.0, 1.0)}
        exact, half = (
            head.predict_by_feat(*each, batch_img_metas=[meta], cfg=head.test_cfg)[0]
            for each in ([[level.float() for level in levels] for levels in outputs], outputs)
        )
    assert half.bboxes.dtype == torch.float32
    assert len(half.bboxes) > 0
    assert torch.equal(half.bboxes, exact.bboxes)


def test_guided_anchoring_learns_from_batches_that_32_does_not_divide() -> None:
    architecture = Architecture.parse("64x48 ResNet18(w=4) FPN(P2-P3,c=8) GA-RPN 2FC")
    detector = Detector(roi_samples=4, fc_channels=8, proposals=10)
    config = model_config(architecture, classes=2, detector=detector)
    assert measured_memory(config, architecture.input_size, 33, 1, "cpu") > 0
