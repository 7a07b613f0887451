"""Each operator against a direct formula, through the functions and layers of mmcv that the detectors call."""

import itertools
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from smnas_optuna.detector import mmcv_ops

if not mmcv_ops.install():
    pytest.skip("mmcv is compiled with its own operators", allow_module_level=True)

import mmcv
import mmcv.ops
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from tests.detector.counted_calls import CountedCalls

Array = NDArray[np.float64]

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def uniform(*shape: int, low: float = -1.0, high: float = 1.0, device: str = "cpu") -> Tensor:
    """Double precision, requires a gradient."""
    values = torch.empty(shape, dtype=torch.float64).uniform_(low, high)
    return values.to(device).requires_grad_()


def array(tensor: Tensor) -> Array:
    values: Array = tensor.detach().cpu().double().numpy()
    return values


# ---------------------------------------------------------------------------------------------------------- install


def run_python(program: str, *arguments: Path) -> str:
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_install_makes_the_import_of_mmcv_ops_and_mmdet_models_work_in_a_fresh_interpreter() -> None:
    program = """
        from smnas_optuna.detector.mmcv_ops import install
        try:
            import mmcv.ops
        except ModuleNotFoundError as error:
            print(error.name)
        print(install())
        import mmcv.ops, mmdet.models
        print(mmcv.ops.nms.__module__)
    """
    assert run_python(program).split() == ["mmcv._ext", "True", "mmcv.ops.nms"]


def test_install_does_not_replace_existing_operators(tmp_path: Path) -> None:
    (tmp_path / "_ext.py").write_text("whose = 'compiled'\n")
    program = """
        import importlib, sys
        import mmcv
        from smnas_optuna.detector.mmcv_ops import install
        mmcv.__path__.append(sys.argv[1])
        print(install(), "mmcv._ext" in sys.modules)
        import mmcv._ext
        print(install(), mmcv._ext.whose, mmcv._ext.__file__)
    """
    assert run_python(program, tmp_path).split() == ["False", "False", "False", "compiled", str(tmp_path / "_ext.py")]


def test_install_again_changes_nothing() -> None:
    before = sys.modules["mmcv._ext"]
    assert mmcv_ops.install()
    assert sys.modules["mmcv._ext"] is before
    assert mmcv._ext is before


def test_the_module_is_described_by_a_spec() -> None:
    spec = sys.modules["mmcv._ext"].__spec__
    assert spec is not None
    assert (spec.name, spec.origin) == ("mmcv._ext", mmcv_ops.__file__)
    assert spec.loader is not None


def test_calling_an_operator_that_is_not_provided_is_an_error() -> None:
    message = r"mmcv op 'softnms' needs mmcv compiled with its ops \(pip install mmcv instead of mmcv-lite\)"
    with pytest.raises(NotImplementedError, match=message):
        mmcv.ops.soft_nms(torch.zeros(1, 4), torch.zeros(1))


@pytest.mark.parametrize("name", ["__file__", "__path__", "_ipython_display_"])
def test_special_names_are_not_operators(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(sys.modules["mmcv._ext"], name)


def test_the_environment_report_of_mmcv_works() -> None:
    from mmcv.utils import collect_env

    assert collect_env()["MMCV Compiler"] == "n/a"


# -------------------------------------------------------------------------------------------------------------- nms


def greedy_nms(boxes: NDArray[np.int64], order: list[int], iou_threshold: float, offset: int) -> list[int]:
    """Compare every box with every better one that was kept; whole numbers, so nothing is rounded."""
    kept: list[int] = []
    for candidate in order:
        x1, y1, x2, y2 = boxes[candidate].tolist()
        for other in kept:
            u1, v1, u2, v2 = boxes[other].tolist()
            common = max(0, min(x2, u2) - max(x1, u1) + offset) * max(0, min(y2, v2) - max(y1, v1) + offset)
            areas = [(c - a + offset) * (d - b + offset) for a, b, c, d in ((x1, y1, x2, y2), (u1, v1, u2, v2))]
            if common > iou_threshold * (sum(areas) - common):
                break
        else:
            kept.append(candidate)
    return kept


@st.composite
def box_sets(draw: st.DrawFn) -> NDArray[np.int64]:
    corner, side = st.integers(0, 12), st.integers(0, 8)
    rows = draw(st.lists(st.tuples(corner, corner, side, side), max_size=30))
    boxes = np.array(rows, dtype=np.int64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def distinct_scores(count: int, seed: int) -> tuple[Tensor, list[int]]:
    """Scores that every dtype holds exactly, and the boxes from the highest to the lowest."""
    ranks = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return 1 - ranks / 64, ranks.argsort().tolist()


@pytest.mark.parametrize("device", DEVICES)
@given(
    boxes=box_sets(),
    seed=st.integers(0, 99),
    iou_threshold=st.sampled_from([0.25, 0.5, 0.75]),
    offset=st.sampled_from([0, 1]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
@settings(deadline=None, max_examples=150)
def test_nms_keeps_what_the_pairwise_definition_keeps(
    device: str, boxes: NDArray[np.int64], seed: int, iou_threshold: float, offset: int, dtype: torch.dtype
) -> None:
    scores, order = distinct_scores(len(boxes), seed)
    scores = scores.to(device, dtype)
    there = torch.from_numpy(boxes).to(device, dtype)
    found, kept = mmcv.ops.nms(there, scores, iou_threshold, offset)
    assert kept.tolist() == greedy_nms(boxes, order, iou_threshold, offset)
    assert torch.equal(found, torch.cat([there[kept], scores[kept, None]], 1))


@pytest.mark.parametrize("device", DEVICES)
def test_nms_suppresses_above_the_threshold_and_not_at_it(device: str) -> None:
    boxes = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]], device=device)  # their IoU is 1/2
    scores = torch.tensor([0.9, 0.8], device=device)
    assert mmcv.ops.nms(boxes, scores, 0.5)[1].tolist() == [0, 1]
    assert mmcv.ops.nms(boxes, scores, 0.499)[1].tolist() == [0]


def test_nms_with_offset_counts_the_last_pixel() -> None:
    boxes, scores = np.array([[0, 0, 1, 1], [0, 1, 1, 2]], dtype=np.float32), np.array([0.9, 0.8], dtype=np.float32)
    assert mmcv.ops.nms(boxes, scores, 0.3, offset=0)[1].tolist() == [0, 1]  # they touch
    assert mmcv.ops.nms(boxes, scores, 0.3, offset=1)[1].tolist() == [0]  # 2 of 6 pixels are common


def test_nms_drops_low_scores_and_stops_at_the_maximum() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]])
    scores = torch.tensor([0.2, 0.5, 0.9])
    assert mmcv.ops.nms(boxes, scores, 0.5, score_threshold=0.3)[1].tolist() == [2, 1]
    assert mmcv.ops.nms(boxes, scores, 0.5, max_num=1)[1].tolist() == [2]


@given(
    boxes=box_sets().filter(len),
    seed=st.integers(0, 99),
    class_agnostic=st.booleans(),
    split_thr=st.sampled_from([1, 10000]),
)
@settings(deadline=None)
def test_batched_nms_suppresses_within_a_class_only(
    boxes: NDArray[np.int64], seed: int, class_agnostic: bool, split_thr: int
) -> None:
    scores, order = distinct_scores(len(boxes), seed)
    classes = torch.arange(len(boxes)) % 3
    config = {"type": "nms", "iou_threshold": 0.5, "class_agnostic": class_agnostic, "split_thr": split_thr}
    found, kept = mmcv.ops.batched_nms(torch.from_numpy(boxes).float(), scores, classes, config)

    if class_agnostic and split_thr > len(boxes):
        expected = set(greedy_nms(boxes, order, 0.5, 0))
    else:  # past the split threshold mmcv goes class by class whatever class_agnostic says
        members = [[box for box in order if classes[box] == label] for label in range(3)]
        expected = set(itertools.chain.from_iterable(greedy_nms(boxes, part, 0.5, 0) for part in members))
    assert kept.tolist() == [box for box in order if box in expected]
    assert torch.equal(found, torch.cat([torch.from_numpy(boxes).float()[kept], scores[kept, None]], 1))


# -------------------------------------------------------------------------------------------------------- RoI Align


def tent(size: int, position: float) -> Array:
    """Weights of linear interpolation at a position between pixels 0, 1, ..., size - 1."""
    weights: Array = np.maximum(0.0, 1.0 - np.abs(np.arange(size) - position))
    return weights


def roi_align_reference(
    features: Array, rois: Array, bins: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Array:
    _, channels, *sizes = features.shape
    output = np.zeros((len(rois), channels, *bins))
    for k, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        axes: list[list[list[float]]] = []  # per axis and bin the positions of its sampling points
        for low, high, count in ((y1, y2, bins[0]), (x1, x2, bins[1])):
            start = low * scale - (0.5 if aligned else 0.0)
            length = (high - low) * scale
            length = length if aligned else max(length, 1.0)
            points = sampling_ratio or int(np.ceil(length / count))
            edges = [start + length / count * index for index in range(count)]
            axes.append([[edge + length / count * (i + 0.5) / points for i in range(points)] for edge in edges])
        for (i, ys), (j, xs) in itertools.product(enumerate(axes[0]), enumerate(axes[1])):
            values = [
                np.einsum("chw,h,w->c", features[int(image)], *(tent(s, min(max(p, 0), s - 1)) for s, p in at))
                for at in (tuple(zip(sizes, (y, x), strict=True)) for y in ys for x in xs)
                if all(-1 <= p <= s for s, p in at)  # points further out count as zero
            ]
            output[k, :, i, j] = np.sum(values, axis=0) / (len(ys) * len(xs)) if values else 0
    return output


# Inside; across each border; smaller than a pixel of the features; on the second image.
ROIS = torch.tensor(
    [
        [0, 3.3, 2.1, 17.9, 11.2],
        [1, -6.4, -3.2, 5.1, 9.7],
        [1, 10.3, 8.8, 31.2, 21.7],
        [0, 6.2, 6.4, 6.9, 7.1],
        [1, 0.0, 0.0, 20.0, 14.0],
    ],
    dtype=torch.float64,
)
SAMPLING = pytest.mark.parametrize(("sampling_ratio", "aligned"), list(itertools.product([0, 2], [True, False])))


@pytest.mark.parametrize("device", DEVICES)
@SAMPLING
def test_roi_align_averages_interpolated_points(sampling_ratio: int, aligned: bool, device: str) -> None:
    features, rois = uniform(2, 3, 7, 10, device=device), ROIS.to(device)
    layer = mmcv.ops.RoIAlign((2, 3), 0.5, sampling_ratio, aligned=aligned)
    expected = roi_align_reference(array(features), array(rois), (2, 3), 0.5, sampling_ratio, aligned)
    np.testing.assert_allclose(array(layer(features, rois)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@SAMPLING
def test_roi_align_has_the_gradient_of_its_value(sampling_ratio: int, aligned: bool, device: str) -> None:
    features, rois = uniform(2, 2, 7, 10, device=device), ROIS.to(device)
    layer = mmcv.ops.RoIAlign((2, 3), 0.5, sampling_ratio, aligned=aligned)
    # The gradient is summed atomically on a GPU, so its last bits vary.
    assert torch.autograd.gradcheck(lambda x: layer(x, rois), (features,), nondet_tol=1e-12)


def test_roi_align_of_no_region_is_empty_and_has_a_zero_gradient() -> None:
    features = uniform(1, 2, 4, 4)
    output = mmcv.ops.roi_align(features, torch.zeros(0, 5, dtype=torch.float64), 7)
    assert output.shape == (0, 2, 7, 7)
    output.sum().backward()
    assert features.grad is not None
    assert not features.grad.any()


def test_roi_align_by_maximum_is_not_provided() -> None:
    with pytest.raises(NotImplementedError, match=r"roi_align, pool_mode max.* needs mmcv compiled"):
        mmcv.ops.roi_align(torch.zeros(1, 1, 2, 2), torch.zeros(1, 5), 1, 1.0, 0, "max")


# --------------------------------------------------------------------------------------------------- deformable conv

# Height and width differ in everything, so that no pair can be swapped unseen.
KERNEL, STRIDE, PADDING, DILATION = (3, 2), (2, 1), (1, 2), (1, 2)
STRIDED = (STRIDE, PADDING, DILATION)


def deform_conv_reference(x: Array, offset: Array, weight: Array, groups: int, deform_groups: int) -> Array:
    batch, channels, height, width = x.shape
    out_channels, group_channels = weight.shape[:2]
    output = np.zeros((batch, out_channels, *offset.shape[2:]))
    shifts = offset.reshape(batch, deform_groups, *KERNEL, 2, *offset.shape[2:])
    for n, o, c, row, column, i, j in np.ndindex(*output.shape[:2], group_channels, *output.shape[2:], *KERNEL):
        channel = o // (out_channels // groups) * group_channels + c
        dy, dx = shifts[n, channel // (channels // deform_groups), i, j, :, row, column]
        y = row * STRIDE[0] - PADDING[0] + i * DILATION[0] + dy
        z = column * STRIDE[1] - PADDING[1] + j * DILATION[1] + dx
        output[n, o, row, column] += weight[o, c, i, j] * (tent(height, y) @ x[n, channel] @ tent(width, z))
    return output


def deform_conv_tensors(groups: int, deform_groups: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Input, offset and weight; the offsets reach beyond every border."""
    return (
        uniform(2, 4, 5, 6, device=device),
        uniform(2, deform_groups * 12, 3, 8, low=-3, high=3, device=device),
        uniform(4, 4 // groups, *KERNEL, device=device),
    )


GROUPS = pytest.mark.parametrize(("groups", "deform_groups"), list(itertools.product([1, 2], [1, 2])))


@pytest.mark.parametrize("device", DEVICES)
@GROUPS
def test_deform_conv_samples_at_the_shifted_positions(groups: int, deform_groups: int, device: str) -> None:
    x, offset, weight = deform_conv_tensors(groups, deform_groups, device)
    expected = deform_conv_reference(array(x), array(offset), array(weight), groups, deform_groups)
    for im2col_step in (1, 32):
        output = mmcv.ops.deform_conv2d(x, offset, weight, *STRIDED, groups, deform_groups, False, im2col_step)
        np.testing.assert_allclose(array(output), expected, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@GROUPS
def test_deform_conv_has_the_gradients_of_its_value(groups: int, deform_groups: int, device: str) -> None:
    def convolve(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
        output: Tensor = mmcv.ops.deform_conv2d(x, offset, weight, *STRIDED, groups, deform_groups)
        return output

    tensors = deform_conv_tensors(groups, deform_groups, device)
    assert torch.autograd.gradcheck(convolve, tensors, nondet_tol=1e-12)


def test_deform_conv_computes_its_gradients_once() -> None:
    tensors = [tensor.requires_grad_() for tensor in deform_conv_tensors(1, 1, "cpu")]
    for wanted in ([0, 1, 2], [2]):
        output = mmcv.ops.deform_conv2d(*tensors, *STRIDED, 1, 1)
        with CountedCalls() as counted:
            torch.autograd.grad(output.sum(), [tensors[number] for number in wanted])
        assert counted.calls["torchvision._deform_conv2d_backward"] == 1


def test_nms_of_boxes_does_not_synchronise_with_the_host() -> None:
    boxes, scores = torch.tensor([[0.0, 0, 9, 9], [20, 20, 30, 30]]), torch.tensor([0.9, 0.8])
    for offset in (0, 1):
        with CountedCalls() as counted:
            mmcv.ops.nms(boxes, scores, 0.5, offset)
        # Of a list of numbers torch makes a tensor on the CPU and copies it, for which a GPU is waited for.
        assert not [call for call in counted.calls if call.startswith(("aten.lift_fresh", "aten._to_copy"))]


@pytest.mark.parametrize("groups", [1, 2])
def test_deform_conv_without_offset_is_a_convolution(groups: int) -> None:
    x, offset, weight = deform_conv_tensors(groups, 1, "cpu")
    output = mmcv.ops.deform_conv2d(x, torch.zeros_like(offset), weight, *STRIDED, groups)
    torch.testing.assert_close(output, F.conv2d(x, weight, None, *STRIDED, groups))


# ------------------------------------------------------------------------------------------------------ masked conv


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 1), ((5, 3), (2, 1))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.filterwarnings("ignore:This overload of addmm is deprecated")  # in mmcv's masked_conv.py
def test_masked_conv_is_the_convolution_at_masked_positions_and_zero_elsewhere(
    kernel: int | tuple[int, int], padding: int | tuple[int, int], dtype: torch.dtype, device: str
) -> None:
    layer = mmcv.ops.MaskedConv2d(3, 4, kernel, padding=padding).to(device, dtype)
    x = torch.randn(1, 3, 6, 9, device=device, dtype=dtype)
    mask = torch.rand(1, 6, 9, device=device) > 0.6
    # On a GPU convolutions use TensorFloat-32 by default, matrix products do not.
    with torch.backends.cudnn.flags(allow_tf32=False):
        expected = F.conv2d(x, layer.weight, layer.bias, padding=padding) * mask
    torch.testing.assert_close(layer(x, mask), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_masked_conv_of_an_empty_mask_is_zero(device: str) -> None:
    layer = mmcv.ops.MaskedConv2d(3, 4, 3, padding=1).to(device)
    output = layer(torch.randn(1, 3, 6, 9, device=device), torch.zeros(1, 6, 9, device=device))
    assert torch.equal(output, torch.zeros(1, 4, 6, 9, device=device))


# ------------------------------------------------------------------------------------------------------- focal loss

CLASSES = 3
TARGETS = torch.tensor([0, 1, 2, CLASSES, 1, CLASSES, -1])  # the last three kinds: a class, background, unlabelled
CLASS_WEIGHTS = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)


def focal_loss_reference(logits: Tensor, gamma: float, alpha: float, weighted: bool) -> Tensor:
    """The paper's formula entry by entry; autograd gives its derivative."""
    rows = []
    for row, target in zip(logits, TARGETS.tolist(), strict=True):
        known = 0 <= target < CLASSES
        factor = CLASS_WEIGHTS[target].item() if weighted and known else 1.0
        p = 1 / (1 + torch.exp(-row))
        losses = [
            -alpha * (1 - q) ** gamma * torch.log(q) if label == target else -(1 - alpha) * q**gamma * torch.log(1 - q)
            for label, q in enumerate(p)
        ]
        rows.append(factor * torch.stack(losses))
    return torch.stack(rows)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (1.5, 0.3), (0.0, 0.5)])
def test_focal_loss_and_its_gradient_are_those_of_the_formula(
    gamma: float, alpha: float, weighted: bool, device: str
) -> None:
    logits, same = uniform(7, CLASSES, low=-4, high=4, device=device), uniform(7, CLASSES)
    same.data = logits.detach().cpu()
    weight = CLASS_WEIGHTS.to(device) if weighted else None
    loss = mmcv.ops.sigmoid_focal_loss(logits, TARGETS.to(device), gamma, alpha, weight, "none")
    expected = focal_loss_reference(same, gamma, alpha, weighted)
    torch.testing.assert_close(loss.cpu(), expected)

    cotangent = torch.rand_like(expected)
    (gradient,) = torch.autograd.grad(loss, logits, cotangent.to(device))
    (expected_gradient,) = torch.autograd.grad(expected, same, cotangent)
    torch.testing.assert_close(gradient.cpu(), expected_gradient)


@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("mean", 7)])
def test_focal_loss_reduces_over_rows(reduction: str, divisor: int) -> None:
    logits = uniform(7, CLASSES)
    loss = mmcv.ops.SigmoidFocalLoss(2.0, 0.25, reduction=reduction)(logits, TARGETS)
    torch.testing.assert_close(loss, focal_loss_reference(logits, 2.0, 0.25, False).sum() / divisor)


@given(magnitude=st.floats(0, torch.finfo(torch.float32).max, width=32), gamma=st.sampled_from([0.0, 0.5, 2.0, 5.0]))
@settings(deadline=None)
def test_focal_loss_is_finite_and_not_negative_for_any_finite_logit(magnitude: float, gamma: float) -> None:
    logits = torch.tensor([[magnitude, -magnitude, magnitude], [-magnitude, magnitude, 0.0]], requires_grad=True)
    loss = mmcv.ops.sigmoid_focal_loss(logits, torch.tensor([0, CLASSES]), gamma, 0.25, None, "none")
    assert loss.isfinite().all()
    assert (loss >= 0).all()
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.isfinite().all()


def test_focal_loss_grows_linearly_with_a_wrong_logit() -> None:
    logits = torch.tensor([[-1e4, 1e4, -1e4]], requires_grad=True)
    loss = mmcv.ops.sigmoid_focal_loss(logits, torch.tensor([0]), 2.0, 0.25, None, "none")
    torch.testing.assert_close(loss, torch.tensor([[0.25e4, 0.75e4, 0.0]]))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, torch.tensor([[-0.25, 0.75, 0.0]]))


# --------------------------------------------------------------------------------------------- half precision, AMP


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_gives_the_rounded_result_of_single_precision(dtype: torch.dtype, device: str) -> None:
    """Values and gradients alike, of everything that is differentiated."""

    def outcomes(compute: torch.dtype) -> Iterator[Tensor]:
        torch.manual_seed(0)  # tensors that half precision holds exactly
        x, offset, weight = (
            t.detach().to(dtype).to(compute).requires_grad_() for t in deform_conv_tensors(1, 1, device)
        )
        logits = torch.randn(7, CLASSES).to(device, dtype).to(compute).requires_grad_()
        rois = ROIS.to(device, dtype).to(compute)
        values = {
            x: mmcv.ops.roi_align(x, rois, 2, 0.25),
            weight: mmcv.ops.deform_conv2d(x, offset, weight, *STRIDED),
            logits: mmcv.ops.sigmoid_focal_loss(logits, TARGETS.to(device), 2.0, 0.25, None, "none"),
        }
        for source, value in values.items():
            yield value
            yield torch.autograd.grad(value, source, torch.ones_like(value), retain_graph=True)[0]
        convolved = values[weight]
        yield from torch.autograd.grad(convolved, (x, offset), torch.ones_like(convolved))

    for half, single in zip(outcomes(dtype), outcomes(torch.float32), strict=True):
        assert half.dtype == dtype
        if device == "cpu":
            assert torch.equal(half, single.to(dtype))
        else:  # summed atomically
            torch.testing.assert_close(half, single.to(dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
def test_a_deformable_and_a_masked_layer_run_and_train_under_autocast(dtype: torch.dtype, device: str) -> None:
    deformable = mmcv.ops.DeformConv2dPack(3, 4, 3, padding=1).to(device)
    masked = mmcv.ops.MaskedConv2d(4, 2, 1).to(device)
    torch.nn.init.normal_(deformable.conv_offset.weight)
    x = torch.randn(1, 3, 6, 6, device=device)
    with torch.autocast(device, dtype):
        features = deformable(x)
        with torch.no_grad():
            output = masked(features, torch.ones(1, 6, 6, device=device))
    features.float().square().mean().backward()
    for layer in (deformable, deformable.conv_offset):
        assert layer.weight.grad.isfinite().all()
        assert layer.weight.grad.any()
    expected = F.conv2d(features.float(), masked.weight, masked.bias)
    torch.testing.assert_close(output.float(), expected, rtol=0.03, atol=0.03)


# ------------------------------------------------------------------------------------------------- inside MMDetection


GA_RPN = {
    "type": "GARPNHead",
    "in_channels": 8,
    "feat_channels": 8,
    "approx_anchor_generator": {
        "type": "AnchorGenerator",
        "octave_base_scale": 4,
        "scales_per_octave": 3,
        "ratios": [0.5, 1.0, 2.0],
        "strides": [8],
    },
    "square_anchor_generator": {"type": "AnchorGenerator", "ratios": [1.0], "scales": [4], "strides": [8]},
    "loc_filter_thr": 0.5,
    "train_cfg": {
        "assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.7, "neg_iou_thr": 0.3, "min_pos_iou": 0.3},
        "sampler": {"type": "RandomSampler", "num": 32, "pos_fraction": 0.5, "add_gt_as_proposals": False},
        "ga_assigner": {"type": "ApproxMaxIoUAssigner", "pos_iou_thr": 0.7, "neg_iou_thr": 0.3, "min_pos_iou": 0.3},
        "ga_sampler": {"type": "RandomSampler", "num": 32, "pos_fraction": 0.5, "add_gt_as_proposals": False},
        "allowed_border": -1,
        "center_ratio": 0.2,
        "ignore_ratio": 0.5,
        "pos_weight": -1,
        "debug": False,
    },
    "test_cfg": {
        "nms_pre": 50,
        "nms_post": 50,
        "max_per_img": 20,
        "min_bbox_size": 0,
        "nms": {"type": "nms", "iou_threshold": 0.7},
    },
}


@pytest.fixture
def ga_rpn() -> torch.nn.Module:
    register_all_modules(init_default_scope=True)
    head: torch.nn.Module = MODELS.build(ConfigDict(GA_RPN))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


@pytest.mark.filterwarnings("ignore:This overload of addmm is deprecated")
def test_guided_anchoring_predicts_as_it_trains_where_objects_may_be_and_zero_elsewhere(
    ga_rpn: torch.nn.Module,
) -> None:
    x = torch.randn(1, 8, 6, 8)
    with torch.no_grad():
        dense_scores, dense_boxes, _, location = (level[0] for level in ga_rpn.train()([x]))
        scores, boxes, _, _ = (level[0] for level in ga_rpn.eval()([x]))
    mask = location[0].sigmoid() >= 0.5
    assert 0 < mask.sum() < mask.numel()
    torch.testing.assert_close(scores, dense_scores * mask)
    torch.testing.assert_close(boxes, dense_boxes * mask)


@pytest.mark.filterwarnings("ignore:This overload of addmm is deprecated")
def test_guided_anchoring_trains_its_deformable_layer_and_proposes_boxes(ga_rpn: torch.nn.Module) -> None:
    sample = DetDataSample(metainfo={"img_shape": (48, 64), "pad_shape": (48, 64), "scale_factor": (1.0, 1.0)})
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[4.0, 6.0, 36.0, 40.0], [30.0, 10.0, 62.0, 42.0]]), labels=torch.tensor([0, 0])
    )
    features = (torch.randn(1, 8, 6, 8),)
    losses = ga_rpn.loss(features, [sample])  # type: ignore[operator]
    sum(itertools.chain.from_iterable(losses.values())).backward()
    gradient = ga_rpn.feature_adaption.conv_adaption.weight.grad  # type: ignore[union-attr]
    assert gradient.isfinite().all()  # type: ignore[union-attr, operator]
    assert gradient.any()  # type: ignore[union-attr, operator]

    with torch.no_grad():
        (proposals,) = ga_rpn.eval().predict(features, [sample])  # type: ignore[operator]
    assert 0 < len(proposals) <= 20
    assert proposals.scores.tolist() == sorted(proposals.scores.tolist(), reverse=True)
