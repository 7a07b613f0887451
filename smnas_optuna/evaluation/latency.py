"""Inference time, measured."""

import gc
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from smnas_optuna.settings import Timing


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


def _seconds(model: nn.Module, sample: Any, device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    model.test_step(sample)  # type: ignore[operator]
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
