"""Our own layers, each against what it is a variation of."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from smnas_optuna.detector.layers import DividingGroupNorm, TruncatedMobileNetV2

from mmdet.models.backbones import MobileNetV2  # isort: skip  # needs the operators that our layers provide


def run_python(program: str) -> str:
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.strip()


def test_importing_the_layers_makes_mmcv_ops_importable_in_a_fresh_process() -> None:
    program = (
        "import smnas_optuna.detector.layers, torch, mmcv.ops;"
        "boxes = torch.tensor([[0., 0, 9, 9], [1, 0, 9, 9], [20, 20, 30, 30]]);"
        "print(mmcv.ops.nms(boxes, torch.tensor([.9, .8, .7]), 0.5)[1].tolist())"
    )
    assert run_python(program) == "[0, 2]"


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
def test_groups_divide_the_channels_and_hold_two_at_least(channels: int, num_groups: int) -> None:
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
def test_a_map_of_one_pixel_is_not_blanked(channels: int) -> None:
    torch.manual_seed(0)
    assert DividingGroupNorm(channels)(torch.randn(1, channels, 1, 1)).abs().min() > 0.1


@pytest.mark.parametrize("indices", [[1], [2], [4], [6], [1, 2], [2, 4], [1, 2, 4, 6], [7]])
def test_a_truncated_mobilenet_gives_what_the_whole_one_gives(indices: list[int]) -> None:
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
