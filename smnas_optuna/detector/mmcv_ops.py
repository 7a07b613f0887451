"""The compiled operators of mmcv that this package's detectors need, implemented with torch and torchvision.

MMDetection imports `mmcv.ops`, which loads the compiled module `mmcv._ext`. The wheel `mmcv-lite` does not have it, and
building `mmcv` takes long and fails on recent torch releases. :func:`install` therefore provides a module of that name,
unless there are compiled operators. mmcv's own Python code (`mmcv/ops/*.py`) still does autograd, shapes and output
buffers. The functions here have the signatures that it calls and, like the compiled operators, write into tensors that
are passed to them. Argument names and semantics follow `mmcv/ops/csrc` of mmcv 2.1.0.

All functions run on CPU and CUDA with every floating dtype. They compute in at least float32, since torchvision does
not have kernels for half precision on every device, and round the result once, to the dtype of the output.
"""

import functools
import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import Loader
from types import ModuleType
from typing import NoReturn

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401 -- registers torch.ops.torchvision
from torch import Tensor

_NAME = "mmcv._ext"


def install() -> bool:
    """Provide `mmcv._ext` from this file if mmcv has no compiled operators; call it before importing `mmcv.ops`.

    A compiled `mmcv._ext` is neither replaced nor loaded. Calling it again changes nothing.

    Returns:
        True if the operators of this file are used, False if the compiled ones are.

    Raises:
        ModuleNotFoundError: mmcv itself is not installed.
    """
    found = importlib.util.find_spec(_NAME)
    if found is not None:
        return found.origin == __file__
    spec = importlib.util.spec_from_loader(_NAME, _OperatorLoader(), origin=__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[_NAME] = module
    sys.modules["mmcv"]._ext = module  # type: ignore[attr-defined]  # what `import mmcv._ext` would have bound
    return True


class _OperatorLoader(Loader):
    """Fills the module `mmcv._ext`; mmengine checks its spec's loader to see whether `mmcv.ops` can be imported."""

    def exec_module(self, module: ModuleType) -> None:
        operators: list[Callable[..., object]] = [
            nms,
            *(roi_align_forward, roi_align_backward),
            *(deform_conv_forward, deform_conv_backward_input, deform_conv_backward_parameters),
            *(masked_im2col_forward, masked_col2im_forward),
            *(sigmoid_focal_loss_forward, sigmoid_focal_loss_backward),
            *(get_compiler_version, get_compiling_cuda_version),
        ]
        vars(module).update({operator.__name__: operator for operator in operators})
        vars(module)["__getattr__"] = _absent_operator


def _absent_operator(name: str) -> Callable[..., NoReturn]:
    """Return a stand-in for an operator that is not implemented: mmcv gets all on import, but calls few."""
    if name.startswith("_"):
        raise AttributeError(f"module {_NAME!r} has no attribute {name!r}")

    def absent(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f"mmcv op {name!r} needs mmcv compiled with its ops (pip install mmcv instead of mmcv-lite)"
        )

    return absent


def get_compiler_version() -> str:
    """Return "n/a", which `mmcv.utils.collect_env` shows for operators that are not compiled."""
    return "n/a"


def get_compiling_cuda_version() -> str:
    """Return "n/a", see :func:`get_compiler_version`."""
    return "n/a"


def _promote(*tensors: Tensor) -> list[Tensor]:
    """Cast all tensors to their common dtype, at least float32."""
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return [tensor.to(dtype) for tensor in tensors]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: `n x 4`, x1, y1, x2, y2 in pixels.
        scores: `n`.
        iou_threshold: a box is removed if its IoU with a kept box of higher score is *above* this.
        offset: 0; or 1 if x2 and y2 are the last pixels inside, so that a width is x2 - x1 + 1.

    Returns:
        Indices of the kept boxes, int64, highest score first; of equal scores the earlier box first.
    """
    boxes, scores = _promote(boxes, scores)
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    kept: Tensor = torch.ops.torchvision.nms(boxes, scores, iou_threshold)
    return kept


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign (He et al., Mask R-CNN, 2017, section 3) with average pooling.

    Args:
        input: `n x c x h x w`.
        rois: `k x 5`, image index, x1, y1, x2, y2 in pixels of the image.
        output: `k x c x aligned_height x aligned_width`, overwritten.
        argmax_y, argmax_x: unused; for max pooling.
        aligned_height, aligned_width: rows and columns of bins per region.
        spatial_scale: pixels of `input` per pixel of the image.
        sampling_ratio: sampling points per bin and axis; 0 takes ceil(region size / number of bins) of them.
        pool_mode: 1, the average of the points; 0, their maximum, is not provided.
        aligned: shift by half a pixel, so that a pixel's value belongs to its centre; if False, regions smaller than
            one pixel of `input` are widened to one.

    Raises:
        NotImplementedError: `pool_mode` is 0.
    """
    _require_average(pool_mode)
    features, regions = _promote(input, rois)
    bins = (aligned_height, aligned_width)
    output.copy_(
        torch.ops.torchvision.roi_align(features, regions, spatial_scale, *bins, sampling_ratio, bool(aligned))
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of :func:`roi_align_forward` with respect to its `input` to `grad_input`.

    The gradients have the shapes of `output` and `input` there; the other arguments and errors are the same.
    """
    _require_average(pool_mode)
    gradient, regions = _promote(grad_output, rois)
    sizes = (aligned_height, aligned_width, *grad_input.shape)
    grad_input.add_(
        torch.ops.torchvision._roi_align_backward(
            gradient, regions, spatial_scale, *sizes, sampling_ratio, bool(aligned)
        )
    )


def _require_average(pool_mode: int) -> None:
    if pool_mode != 1:
        _absent_operator("roi_align, pool_mode max")()


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **geometry: int
) -> None:
    """Deformable convolution, version 1 (Dai et al., 2017, equation 2); zero outside of the input.

    Args:
        input: `n x c x h x w`.
        weight: `c_out x c/group x kH x kW`.
        offset: `n x (deformable_group * kH * kW * 2) x h_out x w_out`, in pixels; channels hold y, x of one kernel
            point after another, row by row.
        output: `n x c_out x h_out x w_out`, overwritten.
        columns, ones: unused, buffers of the compiled operator.
        geometry: `dH`, `dW` stride, `padH`, `padW`, `dilationH`, `dilationW`, `group`, `deformable_group`; unused are
            `kH` and `kW`, which repeat the weight's shape, and `im2col_step`, how the compiled operator splits a batch.
    """
    input, weight, offset = _promote(input, weight, offset)
    output.copy_(
        torch.ops.torchvision.deform_conv2d(input, weight, offset, *_deform_conv_rest(input, weight, geometry))
    )


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **geometry: int,
) -> None:
    """Add the gradients of :func:`deform_conv_forward` to `grad_input` and `grad_offset`.

    The gradients have the shapes of `output`, `input` and `offset` there; the other arguments are the same, except that
    the gradient of the weight is left in `columns` for :func:`deform_conv_backward_parameters`, which gets the same
    buffer from mmcv: torchvision computes all three gradients at once.
    """
    to_input, to_weight, to_offset = _deform_conv_gradients(grad_output, input, weight, offset, geometry)
    grad_input.add_(to_input)
    grad_offset.add_(to_offset)
    columns.resize_(to_weight.shape).copy_(to_weight)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    scale: float,
    **geometry: int,
) -> None:
    """Add `scale` times the gradient of :func:`deform_conv_forward` with respect to its `weight` to `grad_weight`.

    The gradients have the shapes of `output` and `weight` there; `columns` holds the gradient if
    :func:`deform_conv_backward_input` has been called before; the other arguments are the same.
    """
    if columns.shape != grad_weight.shape:
        # The other gradients were not computed. The output is linear in the weight, so its gradient depends only on the
        # weight's shape.
        _, columns, _ = _deform_conv_gradients(grad_output, input, torch.zeros_like(grad_weight), offset, geometry)
    grad_weight.add_(columns, alpha=scale)
    # Cleared, so that another backward pass through the same layer does not use it.
    columns.resize_(0)


def _deform_conv_gradients(
    grad_output: Tensor, input: Tensor, weight: Tensor, offset: Tensor, geometry: dict[str, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to input, weight and offset, in this order."""
    grad_output, input, weight, offset = _promote(grad_output, input, weight, offset)
    to_input, to_weight, to_offset, _, _ = torch.ops.torchvision._deform_conv2d_backward(
        grad_output, input, weight, offset, *_deform_conv_rest(input, weight, geometry)
    )
    return to_input, to_weight, to_offset


def _deform_conv_rest(input: Tensor, weight: Tensor, geometry: dict[str, int]) -> tuple[Tensor | int, ...]:
    """Return the arguments of torchvision's kernels after the offset: mask and bias (unused), geometry, use of mask."""
    order = ("dH", "dW", "padH", "padW", "dilationH", "dilationW", "group", "deformable_group")
    mask, bias = input.new_zeros(input.size(0), 1), input.new_zeros(weight.size(0))
    return mask, bias, *(geometry[name] for name in order), False


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Copy the convolution window of every masked position into a column; zero outside of the image.

    Args:
        im: `1 x c x h x w`.
        mask_h_idx, mask_w_idx: `m`, int64, rows and columns of the positions in the convolution's output.
        col: `(c * kernel_h * kernel_w) x m`, overwritten.
        kernel_h, kernel_w: size of the window.
        pad_h, pad_w: rows of zeros above and below, columns left and right.
    """
    windows = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h)).unfold(1, kernel_h, 1).unfold(2, kernel_w, 1)
    col.copy_(windows[:, mask_h_idx, mask_w_idx].permute(0, 2, 3, 1).reshape(col.shape))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Write one column per masked position into an image, whose other positions stay as they are.

    Args:
        col: `channels x m`.
        mask_h_idx, mask_w_idx: `m`, int64, rows and columns of the positions.
        im: `1 x channels x height x width`, written at the positions.
        height, width, channels: repeat the shape of `im`.
    """
    im[0][:, mask_h_idx, mask_w_idx] = col.to(im.dtype)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of one sigmoid per class (Lin et al., Focal Loss for Dense Object Detection, 2017, equation 5).

    Args:
        input: `n x c`, logits.
        target: `n`, int64, the class of every row; `c` or a negative number for background.
        weight: `c`, a factor for the rows of each class, which is 1 for background (for which the compiled operator
            reads beyond the end); or empty for no factors.
        output: `n x c`, overwritten.
        gamma: focusing parameter.
        alpha: weight of the positive entries; negative ones have 1 - alpha.
    """
    _, right, balance = _focal_terms(input, target, weight, alpha)
    output.copy_(-balance * torch.sigmoid(-right) ** gamma * F.logsigmoid(right))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Overwrite `grad_input` by the derivative of every entry of the loss with respect to its logit, `n x c`.

    The other arguments are those of :func:`sigmoid_focal_loss_forward`.
    """
    sign, right, balance = _focal_terms(input, target, weight, alpha)
    error = torch.sigmoid(-right)
    slope = error - gamma * torch.sigmoid(right) * F.logsigmoid(right)
    grad_input.copy_(-sign * balance * error**gamma * slope)


def _focal_terms(input: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sign (+1 for positive, -1 for negative entries), the logit of the truth, the weight; each `n x c`.

    With the logit of the truth, positive and negative entries have the same formula, without log(1 - p), so nothing
    overflows or cancels for any finite logit.
    """
    logits, factors = _promote(input, weight)
    classes = logits.size(1)
    positive = target[:, None] == torch.arange(classes, device=target.device)
    sign = torch.full_like(logits, -1).masked_fill_(positive, 1)
    balance = torch.full_like(logits, 1 - alpha).masked_fill_(positive, alpha)
    if factors.numel() > 0:
        known = (target >= 0) & (target < classes)
        balance *= torch.where(known, factors[target.where(known, 0)], 1)[:, None]
    return sign, sign * logits, balance
