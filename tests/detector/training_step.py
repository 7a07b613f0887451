"""Real training steps of a detector, and the most memory that their tensors took at one time."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from smnas_optuna.parts.architecture import InputSize

# The second step is the first that has the optimizer's momentum from its start.
_STEPS = 2


def measured_memory(
    model_config: dict[str, Any],
    size: InputSize,
    images: int,
    boxes: int,
    device: str,
    *,
    parts: int = 1,
    amp: bool = False,
) -> int:
    """Train some steps on random images and boxes, each batch in so many parts, and return the peak in bytes.

    Mixed precision is that of the device, on a CPU with bfloat16.
    """
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _train(model_config, size, images, boxes, device, parts, amp=amp)
        return torch.cuda.max_memory_allocated() - before
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        _train(model_config, size, images, boxes, device, parts, amp=amp)
    results: Any = profile.kineto_results
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        alive += change
        peak = max(peak, alive)
    return peak


def _train(
    model_config: dict[str, Any], size: InputSize, images: int, boxes: int, device: str, parts: int, *, amp: bool
) -> None:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model: Any = MODELS.build(ConfigDict(model_config)).to(device).train()
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=0.001,
        momentum=0.9,
        weight_decay=1e-4,
        fused=device == "cuda",
    )
    kind = _MixedPrecision if amp else OptimWrapper
    wrapper = kind(optimizer, accumulative_counts=parts, clip_grad={"max_norm": 35})
    for _ in range(_STEPS * parts):
        samples = [_sample(size, boxes) for _ in range(images // parts)]
        inputs = [torch.randint(0, 256, (3, size.height, size.width), dtype=torch.uint8) for _ in samples]
        model.train_step({"inputs": inputs, "data_samples": samples}, wrapper)


class _MixedPrecision(OptimWrapper):  # type: ignore[misc]  # mmengine is untyped
    """MMEngine's own for mixed precision takes no CPU."""

    @contextlib.contextmanager
    def optim_context(self, model: torch.nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device):
            yield


def _sample(size: InputSize, boxes: int) -> DetDataSample:
    box = torch.tensor([size.width, size.height])
    corners = torch.rand(boxes, 2) * box * 0.7
    sides = 0.05 * box + torch.rand(boxes, 2) * box * 0.25
    # One covers the image: RTMDet's assigner takes the most memory where every point is in a box.
    corners[0], sides[0] = 0, box
    sample = DetDataSample(metainfo={"img_shape": (size.height, size.width), "scale_factor": (1.0, 1.0)})
    sample.gt_instances = InstanceData(
        bboxes=torch.cat([corners, corners + sides], dim=1), labels=torch.zeros(boxes, dtype=torch.long)
    )
    sample.ignored_instances = InstanceData(bboxes=torch.empty(0, 4), labels=torch.empty(0, dtype=torch.long))
    return sample
