"""Memory that training a detector takes, estimated by going through one training step on the meta device.

Every tensor of the step is made, in its shape but without memory: activations, what autograd keeps of them, losses over
all anchors, and the backward pass with its gradients. The peak of what is alive at one time is what the device needs.
Two things are not in it, for no tensor of theirs is seen: what kernels take inside, for which there is an allowance on
CUDA, and the allocator's own waste; see ``usable_memory`` in ``training/fitting.py``.
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

# Of cuDNN's and cuBLAS's workspaces, which depend on the algorithms that they choose.
_CUDA_WORKSPACE = 256 * 2**20
# Boxes of the most crowded image of COCO's training split are 93.
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
    """Estimate the most bytes that tensors take at one time while a detector is trained with SGD on a device.

    Args:
        model: A detector on the meta device (:func:`~smnas_optuna.detector.counting.build_on_meta`), with an
            anchor-based head or an RPN with RCNN heads.
        input_size: Box that images are scaled to; its sides are padded as the detector pads them.
        images: That go through the detector at once.
        boxes: Of the image that has most.
        device: ``cuda`` or ``cpu``, which differ in how some losses and steps are computed.
        amp: Mixed precision, as torch's autocast has it on CUDA.
        accumulating: Gradients of earlier images are there while those of the next are computed.
        distributed: Several processes train together, for which torch keeps the gradients a second time.

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
            # With weight decay the step works on a copy of each gradient in turn; on CUDA one kernel does all of it.
            copy = torch.empty_like(max(trained, key=torch.numel))
            del copy
    peak: int = allocations.peak
    momentum = _bytes(trained)
    buckets = _bytes(trained) if distributed else 0
    workspace = _CUDA_WORKSPACE if device == "cuda" else 0
    return _bytes(weights) + momentum + buckets + peak + workspace


def learns_statistics(model: nn.Module) -> bool:
    """Tell whether a detector's training has batch normalisation learn from the images that go through it together."""
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


# On the meta device torch works these out in Python, step by step, which took most of an estimate's time. All numbers
# are floating-point ones here.
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
    """Watches how many bytes of tensors are alive, from the first operation that makes them to their last owner's end.

    Args:
        known: Tensors that are there already, and not counted.
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
                self._note(output.untyped_storage())
        return outputs

    def _note(self, storage: torch.UntypedStorage) -> None:
        # Views and what is computed in place share a storage.
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self._alive += size
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._alive -= size


class _Autocast(TorchFunctionMode):
    """Casts what operations take as torch's autocast does on CUDA, which does not know the meta device.

    Each weight is cast once and kept, as there.
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
    """Go through a detector's forward pass in training, and return a loss that every part of it has its share in."""
    features = model.extract_feat(batch)
    if not hasattr(model, "roi_head"):
        return _dense_loss(model.bbox_head, features, boxes, device)
    loss = _dense_loss(_with_own_deformation(model.rpn_head), features, boxes, device)
    return loss + _region_loss(model.roi_head, model.train_cfg.rcnn, features)


def _dense_loss(head: Any, features: Sequence[Tensor], boxes: int, device: str) -> Tensor:
    """Return the loss of a head that predicts at every location, as MMDetection's ``AnchorHead.loss_by_feat``."""
    if not isinstance(head, AnchorHead):
        raise ValueError(f"{type(head).__name__}: memory is estimated of anchor-based heads only")
    outputs = head(features)
    scores, deltas = outputs[:2]
    images = len(features[0])
    anchors = [score[0].numel() // head.cls_out_channels for score in scores]
    _assign_targets(head, images, sum(anchors), boxes)
    losses = []
    # Anchors, and of each its label and weight, the box to be predicted and its weight.
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
        boxes_there = delta.permute(0, 2, 3, 1).reshape(-1, 4)
        losses.append((torch.abs(boxes_there - goals) * goal_weights).sum())
    # Guided anchoring's shapes and locations.
    losses += [extra.sum() for level in outputs[2:] for extra in level]
    return torch.stack(losses).sum()


def _assign_targets(head: Any, images: int, anchors: int, boxes: int) -> None:
    """Compare the boxes of an image with all anchors; the comparison's intermediates are many times its result."""
    # Guided anchoring tries several anchors at each location, all of them at once.
    each = getattr(head, "approxs_per_octave", 1)
    # The anchors themselves, copied for each image, and reordered for the one whose turn it is.
    copies = [torch.empty(each * anchors, 4) for _ in range(images + 2 if each > 1 else 1)]
    bbox_overlaps(copies[0], torch.empty(boxes, 4))


def _classification_loss(loss: Any, logits: Tensor, labels: Tensor, weights: Tensor, device: str) -> Tensor:
    if type(loss).__name__ != "FocalLoss":
        one_hot = torch.empty(logits.shape)
        return (F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none") * weights[:, None]).sum()
    if device == "cuda":
        found: Tensor = _FocalLoss.apply(logits.contiguous(), labels)
        return (found * weights[:, None]).sum()
    return loss(logits, labels, weights, avg_factor=1.0).sum()  # type: ignore[no-any-return]  # mmdet is untyped


class _FocalLoss(torch.autograd.Function):
    """The focal loss that CUDA has, of one operator; on a CPU MMDetection writes it out."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        ctx.save_for_backward(logits, labels)
        found = torch.zeros_like(logits)
        mmcv_ops.sigmoid_focal_loss_forward(logits, labels, logits.new_empty(0), found, 2.0, 0.25)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, labels = ctx.saved_tensors
        found = torch.zeros_like(logits)
        mmcv_ops.sigmoid_focal_loss_backward(logits, labels, logits.new_empty(0), found, 2.0, 0.25)
        found *= gradients[0]
        return found, None


def _with_own_deformation(rpn_head: Any) -> Any:
    """Return the RPN with guided anchoring's deformable convolution replaced by one for the meta device."""
    if hasattr(rpn_head, "feature_adaption"):
        layer = rpn_head.feature_adaption.conv_adaption
        layer.forward = lambda features, offset: _DeformableConvolution.apply(features, offset, layer.weight)
    return rpn_head


class _DeformableConvolution(torch.autograd.Function):
    """A 3x3 deformable convolution, whose kernels copy the window of every location side by side.

    As ``mmcv_ops.py`` does it: in float32 at least, with copies of what comes in another precision.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
        # mmcv casts features and weight as the offset, which autocast gives in half precision.
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
        found = tuple(map(torch.empty_like, (features, offset, weight)))
        exact = _exact(*gradients, features, offset, weight)
        computed = tuple(map(torch.empty_like, exact[1:]))
        windows = _windows(exact[1])
        del windows, computed, exact
        return found


def _exact(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors)


def _windows(features: Tensor) -> Tensor:
    images, channels, height, width = features.shape
    return features.new_empty(images, channels * 9, height, width)


def _region_loss(roi_head: Any, settings: Any, features: Sequence[Tensor]) -> Tensor:
    """Return the loss of an RCNN head, or of all stages of a cascade, over the regions that they learn from."""
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
    """Cut regions out of the features, evenly from all levels, as :class:`~.layers.ExactRoIExtractor` does."""
    levels = _exact(*features[: extractor.num_inputs])
    size = extractor.roi_layers[0].output_size
    regions = torch.zeros(number, extractor.out_channels, *size)
    for level, layer in zip(levels, extractor.roi_layers, strict=True):
        share = math.ceil(number / len(levels))
        places = torch.empty(share, 5)
        found: Tensor = roi_align(level, places, size, layer.spatial_scale, layer.sampling_ratio, layer.aligned)
        if len(levels) == 1:
            return found.to(features[0].dtype)
        regions[torch.empty(share, dtype=torch.long)] = found
    return regions.to(features[0].dtype)
