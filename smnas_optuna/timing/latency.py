"""Measures the inference time of detectors."""

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
        samples: Batches of one image from a test data loader, of the architecture's input size.
        timing: Its ``warmup`` and ``rounds`` are used.
        device: Device of the model; it is synchronised before each reading of the clock.

    Returns:
        The median time of an image and its spread, in milliseconds. The spread is the interquartile range of the
        medians of the rounds. It says how much the rounds of this measurement differ, and includes neither differences
        between images nor changes between processes or hours.
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
    """Return how many milliseconds the GPU computes or copies for one image, on average.

    During the rest of the inference time it waits for the CPU. If that is much of it, the time depends more on the CPU,
    the input size and the compilation of the network than on the architecture.

    Args:
        model: An MMDetection detector on the GPU.
        samples: Batches of one image, as for :func:`measure_latency`.

    Returns:
        The time; None if the driver does not allow processes to profile the GPU.
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
