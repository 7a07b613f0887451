"""What a plan asks of a machine: its device, and how fast detectors train on it; called in processes of their own."""

import time
from collections.abc import Callable
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from smnas_optuna.detector import layers  # noqa: F401  # registers our layers and provides mmcv's operators
from smnas_optuna.parts.architecture import InputSize
from smnas_optuna.parts.model_config import model_config
from smnas_optuna.timing.cores import usable_cores
from smnas_optuna.timing.device import cpu_name, find_gpus
from smnas_optuna.training.fitting import gpu_memory, machine_memory
from smnas_optuna.training.initial_weights import available_weights
from smnas_optuna.training.job import Machine, SpeedRequest, WeightsRequest
from smnas_optuna.training.runners import put_channels_last

# Boxes in each random image, and least number of steps that are measured.
_BOXES = 8
_FEWEST_STEPS = 2


def describe_machine(_: None, report: Callable[[Machine], None]) -> None:
    """Report the machine's device: its GPUs if torch can use some, else its CPU."""
    gpus = find_gpus().usable
    memory = min(map(gpu_memory, gpus)) if gpus else machine_memory()
    name = torch.cuda.get_device_name(gpus[0]) if gpus else cpu_name()
    report(Machine("cuda" if gpus else "cpu", name, len(gpus), memory / 2**30, len(usable_cores())))


def usable_weights(request: WeightsRequest, report: Callable[[str], None]) -> None:
    """Report what each architecture can start from on this machine, in words; empty for nothing but random weights."""
    for words in available_weights(request):
        report(words)


def measure_speed(request: SpeedRequest, report: Callable[[float], None]) -> None:
    """Report the seconds that each architecture takes for a training image, for the median of some steps.

    Images and boxes are random, so the time for loading images is not included.
    """
    register_all_modules()
    device = torch.device(request.kind)
    for architecture in request.architectures:
        config = ConfigDict(model_config(architecture, classes=request.classes, detector=request.detector))
        model = MODELS.build(config).to(device).train()
        if device.type == "cpu":
            put_channels_last(model)
        data = _batch(request, architecture.input_size)
        seconds: list[float] = []
        _step(model, data, device)  # the first one allocates memory and chooses kernels
        while len(seconds) < _FEWEST_STEPS or sum(seconds) < request.seconds:
            started = time.perf_counter()
            _step(model, data, device)
            seconds.append(time.perf_counter() - started)
        report(sorted(seconds)[len(seconds) // 2] / request.batch_size)


def _batch(request: SpeedRequest, size: InputSize) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    samples = []
    shape = (size.height, size.width)
    for _ in range(request.batch_size):
        corner = torch.rand(_BOXES, 2, generator=generator) * 0.7
        boxes = torch.cat([corner, corner + 0.05 + 0.25 * torch.rand(_BOXES, 2, generator=generator)], dim=1)
        instances = InstanceData(
            bboxes=boxes * torch.tensor([size.width, size.height] * 2),
            labels=torch.randint(request.classes, (_BOXES,), generator=generator),
        )
        metainfo = {"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0)}
        sample = DetDataSample(metainfo=metainfo)
        sample.gt_instances = instances
        samples.append(sample)
    images = torch.randint(256, (request.batch_size, 3, *shape), generator=generator, dtype=torch.uint8)
    return {"inputs": list(images), "data_samples": samples}


def _step(model: Any, data: dict[str, Any], device: torch.device) -> None:
    batch = model.data_preprocessor(dict(data), training=True)
    loss, _ = model.parse_losses(model(**batch, mode="loss"))
    model.zero_grad()
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
