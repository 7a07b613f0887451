"""Estimates the memory that training a detector takes, by running a training step on the meta device.

The step creates all its tensors, with shapes but without memory: activations, what autograd keeps of them, losses over
all anchors, and the gradients of the backward pass. The estimate is the peak of the tensors' sizes at one time. It
lacks two things that create no tensors: the workspace of kernels, for which there is an allowance on CUDA, and the
overhead of the allocator, see ``usable_memory`` in ``training/fitting.py``.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from smnas_optuna.detector.flops import pad
from smnas_optuna.detector.meta_loss import detector_loss
from smnas_optuna.parts.architecture import InputSize

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
    optimizer_states: int = 1,
    averaged: bool = False,
    amp: bool = False,
    accumulating: bool = False,
    distributed: bool = False,
) -> int:
    """Estimate the peak memory, in bytes, of the tensors while a detector is trained.

    Args:
        model: A detector on the meta device (:func:`~smnas_optuna.detector.counting.build_on_meta`). The loss of a head
            that :mod:`~smnas_optuna.detector.meta_loss` does not know is estimated from its outputs alone.
        input_size: Size of the images; its sides are padded as the detector pads them.
        images: Number of images in a forward pass.
        boxes: Largest number of boxes in an image.
        device: ``cuda`` or ``cpu``, which compute some losses and the optimizer's step differently.
        optimizer_states: Numbers that the optimizer keeps for each weight: 1 for SGD with momentum, 2 for AdamW.
        averaged: Whether a moving average of the weights is kept.
        amp: Whether training uses mixed precision, as by torch's autocast on CUDA.
        accumulating: Whether gradients are accumulated over several forward passes.
        distributed: Whether several processes train together, for which torch keeps a second copy of the gradients.
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
            loss = detector_loss(model, batch, boxes, device)
        torch.autograd.backward(loss)
        del loss
        if device == "cpu":
            # With weight decay the step copies one gradient at a time; on CUDA a single kernel needs no copies.
            copy = torch.empty_like(max(trained, key=torch.numel))
            del copy
    peak: int = allocations.peak
    kept = optimizer_states * _bytes(trained) + (_bytes(weights) if averaged else 0)
    buckets = _bytes(trained) if distributed else 0
    workspace = _CUDA_WORKSPACE if device == "cuda" else 0
    return _bytes(weights) + kept + buckets + peak + workspace


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
