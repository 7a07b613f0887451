"""Inference time, measured."""

import gc
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # as torch.profiler's users import it

from smnas_optuna.recipe.settings import Timing


def measure_latency(
    model: nn.Module, samples: Sequence[Any], timing: Timing, device: torch.device
) -> tuple[float, float]:
    """Time a detector, one image at a time, from the image in memory to its final boxes.

    Args:
        model: An MMDetection detector on ``device``.
        samples: Batches of one image, as a test data loader gives them, of the architecture's input size.
        timing: How many images to warm up with and how many rounds to go through.
        device: Where the model is; its queue is waited for before each reading of the clock.

    Returns:
        The median over all readings, and the interquartile range of the rounds' medians, in milliseconds. The spread
        says how far apart the rounds of this measurement lie; images that take longer than others do not widen it,
        and what changes between processes or hours is not in it.
    """
    model.eval()
    rounds = []
    collecting = gc.isenabled()
    with torch.inference_mode():
        for number in range(timing.warmup):
            model.test_step(samples[number % len(samples)])  # type: ignore[operator]  # mmengine's models have it
        gc.collect()
        gc.disable()
        try:
            for _ in range(timing.rounds):
                rounds.append([_seconds(model, sample, device) for sample in samples])
        finally:
            if collecting:
                gc.enable()
    milliseconds = 1000 * np.array(rounds)
    lower, upper = np.percentile(np.median(milliseconds, axis=1), [25, 75])
    return float(np.median(milliseconds)), float(upper - lower)


def gpu_busy_time(model: nn.Module, samples: Sequence[Any]) -> float | None:
    """Return for how many milliseconds a GPU computes or copies for one image, on average.

    The rest of the inference time it waits for the CPU. Where both differ much, a faster CPU, a larger input or a
    compiled network changes the time more than another architecture does.

    Args:
        model: An MMDetection detector on the GPU.
        samples: See :func:`measure_latency`.

    Returns:
        None where the driver does not let processes look at what the GPU does.
    """
    model.eval()
    with torch.inference_mode(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for sample in samples:
            model.test_step(sample)  # type: ignore[operator]  # mmengine's models have it
        torch.cuda.synchronize()
    on_gpu = (event for event in profiler.key_averages() if event.device_type == DeviceType.CUDA)
    microseconds = sum(event.self_device_time_total for event in on_gpu)
    return microseconds / len(samples) / 1000 or None


def _seconds(model: nn.Module, sample: Any, device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    model.test_step(sample)  # type: ignore[operator]
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
