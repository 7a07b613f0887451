"""Estimates the memory that training a detector takes, by running a training step on the meta device.

The step creates all its tensors, with shapes but without memory: activations, what autograd keeps of them, losses over
all anchors, and the gradients of the backward pass. The estimate is the peak of the tensors' sizes at one time. It
lacks two things that create no tensors: the workspace of kernels, for which there is an allowance on CUDA, and the
overhead of the allocator, see ``usable_memory`` in ``training/fitting.py``.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import roi_align

from smnas_optuna.detector import mmcv_ops
from smnas_optuna.detector.flops import pad
from smnas_optuna.parts.architecture import InputSize

mmcv_ops.install()
from mmdet.models.dense_heads import AnchorHead  # noqa: E402  # imports mmcv.ops
from mmdet.structures.bbox import bbox_overlaps  # noqa: E402  # imports mmcv.ops

# Allowance, in bytes, for the workspaces of cuDNN and cuBLAS, which depend on the algorithms that they select.
_CUDA_WORKSPACE = 256 * 2**20
# Assumed largest number of boxes in an image; it is 93 in COCO's training split.
_BOXES = 100


def training_memory(
    model: Any,
    input_size: InputSize,
    images: int,
    *,
    boxes: int = _BOXES,
    device: str = "cuda",
    amp: bool = False,
    accumulating: bool = False,
    distributed: bool = False,
) -> int:
    """Estimate the peak memory, in bytes, of the tensors while a detector is trained with SGD.

    Args:
        model: A detector on the meta device (:func:`~smnas_optuna.detector.counting.build_on_meta`), with an
            anchor-based head, or with an RPN and RCNN heads.
        input_size: Size of the images; its sides are padded as the detector pads them.
        images: Number of images in a forward pass.
        boxes: Largest number of boxes in an image.
        device: ``cuda`` or ``cpu``, which compute some losses and the optimizer's step differently.
        amp: Whether training uses mixed precision, as by torch's autocast on CUDA.
        accumulating: Whether gradients are accumulated over several forward passes.
        distributed: Whether several processes train together, for which torch keeps a second copy of the gradients.

    Raises:
        ValueError: The detector has a head of another kind.
    """
    model.train().zero_grad()
    size = pad(input_size, model.data_preprocessor.pad_size_divisor)
    weights = [*model.parameters(), *model.buffers()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.device("meta"), _Allocations(weights) as allocations:
        if accumulating:
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
        batch = torch.empty(images, 3, size.height, size.width)
        with _Autocast(enabled=amp):
            loss = _loss(model, batch, boxes, device)
        torch.autograd.backward(loss)
        del loss
        if device == "cpu":
            # With weight decay the step copies one gradient at a time; on CUDA a single kernel needs no copies.
            copy = torch.empty_like(max(trained, key=torch.numel))
            del copy
    peak: int = allocations.peak
    momentum = _bytes(trained)
    buckets = _bytes(trained) if distributed else 0
    workspace = _CUDA_WORKSPACE if device == "cuda" else 0
    return _bytes(weights) + momentum + buckets + peak + workspace


def learns_statistics(model: nn.Module) -> bool:
    """Return whether a detector has batch normalisation whose statistics are learnt from the batch in training."""
    return any(isinstance(module, _BatchNorm) and module.training for module in model.train().modules())


def _bytes(tensors: Iterable[Tensor]) -> int:
    total: int = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return total


def _normalized(features: Tensor, statistics: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(features), features.new_empty(statistics), features.new_empty(statistics)


def _group_norm(features: Tensor, *settings: Any) -> tuple[Tensor, ...]:
    images, groups = settings[2], settings[5]
    return _normalized(features, (images, groups))


def _group_norm_backward(_: Tensor, features: Tensor, *settings: Any) -> tuple[Tensor, ...]:
    return _normalized(features, (settings[4],))


def _batch_norm(features: Tensor, *settings: Any) -> tuple[Tensor, ...]:
    training = settings[4]
    return _normalized(features, (features.size(1) if training else 0,))


def _batch_norm_backward(_: Tensor, features: Tensor, *__: Any) -> tuple[Tensor, ...]:
    return _normalized(features, (features.size(1),))


def _elementwise(first: Tensor, second: Any = None, *_: Any, **__: Any) -> Tensor:
    if not isinstance(second, Tensor):
        return torch.empty_like(first)
    shape = torch.broadcast_shapes(first.shape, second.shape)  # type: ignore[no-untyped-call]  # torch's is untyped
    return first.new_empty(shape, dtype=torch.result_type(first, second))


# Shortcuts for operators whose output shapes torch computes in Python on the meta device, which took most of the time
# of an estimate. They assume floating-point numbers.
_QUICK: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.native_group_norm.default: _group_norm,
    torch.ops.aten.native_group_norm_backward.default: _group_norm_backward,
    torch.ops.aten.native_batch_norm.default: _batch_norm,
    torch.ops.aten.native_batch_norm_backward.default: _batch_norm_backward,
    torch.ops.aten.add.Tensor: _elementwise,
    torch.ops.aten.sub.Tensor: _elementwise,
    torch.ops.aten.mul.Tensor: _elementwise,
    torch.ops.aten.mul.Scalar: _elementwise,
    torch.ops.aten.div.Tensor: _elementwise,
    torch.ops.aten.neg.default: _elementwise,
    torch.ops.aten.threshold_backward.default: _elementwise,
}


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own is untyped
    """Tracks the total size, in bytes, of the tensors that operations create and that are still referenced.

    Args:
        known: Existing tensors, which are not counted.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.peak = 0
        self._alive = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        quick = _QUICK.get(func)
        outputs = quick(*args, **(kwargs or {})) if quick else func(*args, **(kwargs or {}))
        for output in outputs if isinstance(outputs, (list, tuple)) else [outputs]:
            if isinstance(output, Tensor):
                self._add(output.untyped_storage())
        return outputs

    def _add(self, storage: torch.UntypedStorage) -> None:
        # Views, and results of in-place operations, share the storage of their input.
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self._alive += size
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._alive -= size


class _Autocast(TorchFunctionMode):
    """Casts the inputs of operations as torch's autocast does on CUDA; autocast does not support the meta device.

    As in autocast, the cast copy of each weight is kept for later operations.
    """

    _HALF = (F.conv2d, F.linear, torch.matmul)
    _FULL = (F.group_norm, F.layer_norm, F.cross_entropy, F.binary_cross_entropy_with_logits, torch.sum)

    def __init__(self, *, enabled: bool) -> None:
        super().__init__()
        self._enabled = enabled
        self._weights: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._enabled and func in self._HALF:
            args = [self._cast(argument, torch.float32, torch.half) for argument in args]
        elif self._enabled and func in self._FULL:
            args = [self._cast(argument, torch.half, torch.float32) for argument in args]
        return func(*args, **(kwargs or {}))

    def _cast(self, value: Any, of: torch.dtype, to: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or value.dtype != of:
            return value
        if not isinstance(value, nn.Parameter):
            return value.to(to)
        return self._weights.setdefault(id(value), value.to(to))


def _loss(model: Any, batch: Tensor, boxes: int, device: str) -> Tensor:
    """Run the forward pass of a training step, and return a loss that depends on every part of the detector."""
    features = model.extract_feat(batch)
    if not hasattr(model, "roi_head"):
        return _dense_loss(model.bbox_head, features, boxes, device)
    loss = _dense_loss(_with_meta_deformable_convolution(model.rpn_head), features, boxes, device)
    return loss + _region_loss(model.roi_head, model.train_cfg.rcnn, features)


def _dense_loss(head: Any, features: Sequence[Tensor], boxes: int, device: str) -> Tensor:
    """Return the loss of a head that predicts at every location, like MMDetection's ``AnchorHead.loss_by_feat``."""
    if not isinstance(head, AnchorHead):
        raise ValueError(f"{type(head).__name__}: memory can be estimated for anchor-based heads only")
    outputs = head(features)
    scores, deltas = outputs[:2]
    images = len(features[0])
    anchors = [score[0].numel() // head.cls_out_channels for score in scores]
    _assign_targets(head, images, sum(anchors), boxes)
    losses = []
    # For each level: anchors, their labels and the labels' weights, the boxes to predict and the boxes' weights.
    targets = [
        (
            torch.empty(images, number, 4),
            torch.empty(images * number, dtype=torch.long),
            torch.empty(images * number),
            torch.empty(images * number, 4),
            torch.empty(images * number, 4),
        )
        for number in anchors
    ]
    for score, delta, (_, labels, weights, goals, goal_weights) in zip(scores, deltas, targets, strict=True):
        logits = score.permute(0, 2, 3, 1).reshape(-1, head.cls_out_channels)
        losses.append(_classification_loss(head.loss_cls, logits, labels, weights, device))
        predicted = delta.permute(0, 2, 3, 1).reshape(-1, 4)
        losses.append((torch.abs(predicted - goals) * goal_weights).sum())
    # The shapes and locations of guided anchoring.
    losses += [extra.sum() for level in outputs[2:] for extra in level]
    return torch.stack(losses).sum()


def _assign_targets(head: Any, images: int, anchors: int, boxes: int) -> None:
    """Compute the IoUs of an image's boxes with all anchors; intermediate results are many times as large."""
    # Guided anchoring compares several anchors per location at once.
    each = getattr(head, "approxs_per_octave", 1)
    # The anchors, a copy for each image, and a reordered copy for the image that is being compared.
    copies = [torch.empty(each * anchors, 4) for _ in range(images + 2 if each > 1 else 1)]
    bbox_overlaps(copies[0], torch.empty(boxes, 4))


def _classification_loss(loss: Any, logits: Tensor, labels: Tensor, weights: Tensor, device: str) -> Tensor:
    if type(loss).__name__ != "FocalLoss":
        one_hot = torch.empty(logits.shape)
        return (F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none") * weights[:, None]).sum()
    if device == "cuda":
        losses: Tensor = _FocalLoss.apply(logits.contiguous(), labels)
        return (losses * weights[:, None]).sum()
    return loss(logits, labels, weights, avg_factor=1.0).sum()  # type: ignore[no-any-return]  # mmdet is untyped


class _FocalLoss(torch.autograd.Function):
    """The focal loss as a single operator, as on CUDA; on a CPU, MMDetection computes it with several operators."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        ctx.save_for_backward(logits, labels)
        losses = torch.zeros_like(logits)
        mmcv_ops.sigmoid_focal_loss_forward(logits, labels, logits.new_empty(0), losses, 2.0, 0.25)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, labels = ctx.saved_tensors
        slopes = torch.zeros_like(logits)
        mmcv_ops.sigmoid_focal_loss_backward(logits, labels, logits.new_empty(0), slopes, 2.0, 0.25)
        slopes *= gradients[0]
        return slopes, None


def _with_meta_deformable_convolution(rpn_head: Any) -> Any:
    """Return the RPN with guided anchoring's deformable convolution replaced by one for the meta device."""
    if hasattr(rpn_head, "feature_adaption"):
        layer = rpn_head.feature_adaption.conv_adaption
        layer.forward = lambda features, offset: _DeformableConvolution.apply(features, offset, layer.weight)
    return rpn_head


class _DeformableConvolution(torch.autograd.Function):
    """A 3x3 deformable convolution, which copies the windows of all locations.

    As in ``mmcv_ops.py``, it computes in at least float32, with copies of tensors in a lower precision.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
        # mmcv casts features and weight to the dtype of the offset, which is half precision under autocast.
        features, weight = features.to(offset.dtype), weight.to(offset.dtype)
        ctx.save_for_backward(features, offset, weight)
        images, _, height, width = features.shape
        output = features.new_empty(images, weight.size(0), height, width)
        exact = _exact(features, offset, weight)
        windows = _windows(exact[0])
        computed = torch.empty(output.shape)
        del windows, computed, exact
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        features, offset, weight = ctx.saved_tensors
        outputs = tuple(map(torch.empty_like, (features, offset, weight)))
        exact = _exact(*gradients, features, offset, weight)
        computed = tuple(map(torch.empty_like, exact[1:]))
        windows = _windows(exact[1])
        del windows, computed, exact
        return outputs


def _exact(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors)


def _windows(features: Tensor) -> Tensor:
    images, channels, height, width = features.shape
    return features.new_empty(images, channels * 9, height, width)


def _region_loss(roi_head: Any, settings: Any, features: Sequence[Tensor]) -> Tensor:
    """Return the loss of an RCNN head, or of all stages of a cascade, over the sampled regions."""
    several = isinstance(roi_head.bbox_head, nn.ModuleList)
    heads: Any = roi_head.bbox_head if several else [roi_head.bbox_head]
    extractors: Any = roi_head.bbox_roi_extractor if several else [roi_head.bbox_roi_extractor]
    samplers = [stage["sampler"] for stage in (settings if several else [settings])]
    images = len(features[0])
    losses = []
    for head, extractor, sampler in zip(heads, extractors, samplers, strict=True):
        regions = _extract(extractor, features, images * sampler["num"])
        scores, deltas = head(regions)
        del regions
        losses += [F.cross_entropy(scores, torch.empty(len(scores), dtype=torch.long)), torch.abs(deltas).sum()]
    if roi_head.with_mask:
        positives = int(images * samplers[0]["num"] * samplers[0]["pos_fraction"])
        masks = roi_head.mask_head(_extract(roi_head.mask_roi_extractor, features, positives))
        losses.append(F.binary_cross_entropy_with_logits(masks, torch.empty(masks.shape)))
    return torch.stack(losses).sum()


def _extract(extractor: Any, features: Sequence[Tensor], number: int) -> Tensor:
    """Pool features of regions, evenly from all levels, as :class:`~.layers.ExactRoIExtractor` does."""
    levels = _exact(*features[: extractor.num_inputs])
    size = extractor.roi_layers[0].output_size
    regions = torch.zeros(number, extractor.out_channels, *size)
    for level, layer in zip(levels, extractor.roi_layers, strict=True):
        share = math.ceil(number / len(levels))
        rois = torch.empty(share, 5)
        pooled: Tensor = roi_align(level, rois, size, layer.spatial_scale, layer.sampling_ratio, layer.aligned)
        if len(levels) == 1:
            return pooled.to(features[0].dtype)
        regions[torch.empty(share, dtype=torch.long)] = pooled
    return regions.to(features[0].dtype)
