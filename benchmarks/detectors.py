"""Detectors, images and training steps that several benchmarks measure."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from smnas_optuna.detector import layers  # noqa: F401  # provides mmcv's operators, without which mmdet is not loaded
from smnas_optuna.detector.counting import published_model
from smnas_optuna.detector.zoo import DETECTORS
from smnas_optuna.parts.architecture import Architecture, InputSize
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.model_config import model_config

REFERENCE = "Faster-RCNN-R50"
# Detectors of the paper's Table 1 with ResNet50 that the zoo lacks, with the paper's milliseconds.
OTHERS = {
    REFERENCE: ("800x600 ResNet50 FPN(P1-P5,c=256) RPN 2FC", 43.6),
    "RetinaNet-R50": ("800x600 ResNet50 FPN(P2-P6,c=256) RetinaNet", 46.7),
    "Cascade-RCNN-R50": ("800x600 ResNet50 FPN(P1-P5,c=256) RPN Cascade(n=3)", 54.9),
}
_PAPERS = ("E0", "E1", "E2", "E3", "E4", "E5", "RetinaNet", "Faster-RCNN", "Cascade-RCNN", "Mask-RCNN")
_ZOO = (*_PAPERS, "RTMDet-s", "ATSS-R50")
CLASSES = 80


@dataclass(frozen=True)
class Subject:
    """A detector to measure.

    Args:
        model: The config's section ``model``.
        size: Input size.
        published: Published inference time in milliseconds; None if there is none.
    """

    model: dict[str, Any]
    size: InputSize
    published: float | None


@dataclass(frozen=True)
class Mode:
    """How a network computes.

    Args:
        amp: In mixed precision.
        channels_last: With tensors in the memory format NHWC.
    """

    amp: bool
    channels_last: bool


MODES = {
    "fp32": Mode(amp=False, channels_last=False),
    "fp32-nhwc": Mode(amp=False, channels_last=True),
    "amp": Mode(amp=True, channels_last=False),
    "amp-nhwc": Mode(amp=True, channels_last=True),
}


def subjects(names: str | None) -> dict[str, Subject]:
    """Return detectors by name, the reference first.

    Args:
        names: Comma-separated names; the reference is always included. None for all detectors.
    """
    selected = {}
    for name in [*OTHERS, *_ZOO]:
        if names is not None and name not in (REFERENCE, *names.split(",")):
            continue
        if name in OTHERS:
            text, milliseconds = OTHERS[name]
            published: float | None = milliseconds
            architecture: Architecture | None = Architecture.parse(text)
            config: PurePosixPath | None = None
        else:
            entry = DETECTORS[name]
            architecture, config, published = entry.architecture, entry.config, entry.milliseconds
        if architecture is not None:
            model = model_config(architecture, classes=CLASSES, detector=Detector())
            selected[name] = Subject(model, architecture.input_size, published)
        else:
            assert config is not None
            model = published_model(config)
            model["backbone"]["init_cfg"] = None  # the pre-trained weights would be downloaded
            selected[name] = Subject(model, InputSize.parse(DETECTORS[name].input_size), published)
    return selected


@contextlib.contextmanager
def computing(network: Any, mode: Mode, device: torch.device) -> Iterator[Any]:
    """Let a network compute in a mode."""
    network = network.eval()
    if mode.channels_last:
        network = network.to(memory_format=torch.channels_last)
    kind = torch.float16 if device.type == "cuda" else torch.bfloat16
    with torch.autocast(device.type, kind, enabled=mode.amp):
        yield network


def in_turn(steps: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of each step. Steps alternate, so a slowdown of the machine affects all of them."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            wait_for(device)
            started = time.perf_counter()
            step()
            wait_for(device)
            if number:  # the first warms up
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def build(model: dict[str, Any], device: torch.device) -> Any:
    """Build a detector with random weights on a device."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        network = MODELS.build(ConfigDict(model))
    network.init_weights()
    return network.to(device)


def random_image(size: InputSize, seed: int) -> torch.Tensor:
    """Return an image of noise, `3 x height x width`, uint8."""
    values = np.random.default_rng(seed).integers(0, 256, (3, size.height, size.width), np.uint8)
    return torch.from_numpy(values)


def _meta(size: InputSize) -> dict[str, Any]:
    shape = (size.height, size.width)
    return {"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0), "img_id": 0}


def one_image(size: InputSize, seed: int) -> dict[str, Any]:
    """Return a batch of one image, in the format of a test data loader."""
    return {"inputs": [random_image(size, seed)], "data_samples": [DetDataSample(metainfo=_meta(size))]}


def batch_of(size: InputSize, images: int) -> dict[str, Any]:
    """Return a batch of images with ten objects each."""
    random = np.random.default_rng(0)
    samples = []
    for _ in range(images):
        corner = random.uniform(0, 0.6, (10, 2)) * (size.width, size.height)
        sides = random.uniform(0.05, 0.4, (10, 2)) * (size.width, size.height)
        boxes = torch.tensor(np.concatenate([corner, corner + sides], axis=1), dtype=torch.float32)
        sample = DetDataSample(metainfo=_meta(size) | {"pad_shape": (size.height, size.width)})
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.arange(10))
        sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    return {"inputs": [random_image(size, seed) for seed in range(images)], "data_samples": samples}


def train_step(network: Any, optimizer: torch.optim.Optimizer, data: dict[str, Any], *, amp: bool = False) -> None:
    """Run a training step on a batch, in mixed precision if ``amp``."""
    # A copy, since the preprocessor moves samples to the device in place.
    batch = {"inputs": data["inputs"], "data_samples": [sample.clone() for sample in data["data_samples"]]}
    inputs = network.data_preprocessor(batch, True)
    with torch.autocast(network.data_preprocessor.device.type, enabled=amp):
        loss, _ = network.parse_losses(network(**inputs, mode="loss"))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def wait_for(device: torch.device) -> None:
    """Wait until a device has finished all computations."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
