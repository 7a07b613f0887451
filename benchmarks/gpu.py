"""Published detectors on this machine's own device, beside the paper's times on a V100.

    python -m benchmarks.gpu [inference] [training] [operators] [profile]
        [--device cuda|cpu] [--models E0,E2,...] [--modes fp32,amp,...] [--images N] [--rounds N]

inference   median milliseconds of one image and their spread, for each detector and mode, and the ratio to Faster
            R-CNN with ResNet50 at 800x600 beside the paper's same ratio (Tables 1 to 3)
training    images per second of E2 with group normalisation and weight standardisation, and with batch normalisation
operators   this package's operators against mmcv's compiled ones, where those are installed
profile     where the milliseconds of E2 go, by part of the detector and by kernel

Everything of one table runs in one process on one device, modes in turn, so ratios hold whatever else the machine is.
Networks have random weights: their convolutions take the time that trained ones take, and so do the proposals, which
are always as many as the RPN may make; final detections, of which random networks find none, cost a little more.
"""

import argparse
import contextlib
import functools
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
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import nn

from smnas_optuna.architecture import Architecture, InputSize
from smnas_optuna.detector import layers  # noqa: F401  # provides mmcv's operators, without which mmdet is not loaded
from smnas_optuna.detector.config import model_config
from smnas_optuna.detector.counting import count_costs, published_model
from smnas_optuna.detector.zoo import DETECTORS
from smnas_optuna.evaluation.device import device_name
from smnas_optuna.evaluation.latency import measure_latency
from smnas_optuna.settings import Detector, Timing

REFERENCE = "Faster-RCNN-R50"
# What the zoo has not: detectors of the paper's Table 1 with ResNet50.
_OTHERS = {
    REFERENCE: ("800x600 ResNet50 FPN(P1-P5,c=256) RPN 2FC", 43.6),
    "RetinaNet-R50": ("800x600 ResNet50 FPN(P2-P6,c=256) RetinaNet", 46.7),
    "Cascade-RCNN-R50": ("800x600 ResNet50 FPN(P1-P5,c=256) RPN Cascade(n=3)", 54.9),
}
_ZOO = ("E0", "E1", "E2", "E3", "E4", "E5", "RetinaNet", "Faster-RCNN", "Cascade-RCNN", "Mask-RCNN")
_CLASSES = 80
_PARTS = ("backbone", "neck", "rpn_head", "roi_head", "bbox_head")


@dataclass(frozen=True)
class Subject:
    """A detector to be timed: its config's ``model``, its input size, and the paper's milliseconds."""

    model: dict[str, Any]
    size: InputSize
    paper: float


@dataclass(frozen=True)
class Mode:
    """How a network computes."""

    amp: bool
    channels_last: bool


MODES = {
    "fp32": Mode(amp=False, channels_last=False),
    "fp32-nhwc": Mode(amp=False, channels_last=True),
    "amp": Mode(amp=True, channels_last=False),
    "amp-nhwc": Mode(amp=True, channels_last=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {"inference": inference, "training": training, "operators": operators, "profile": profile}
    parser.add_argument("tables", nargs="*", default=list(tables), metavar="TABLE", help=", ".join(tables))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--models", help="comma-separated; all if not given")
    parser.add_argument("--modes", default=",".join(MODES), help="of inference")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.tables if name not in tables]
    if unknown:
        parser.error(f"{unknown[0]}: expected some of {', '.join(tables)}")
    MMLogger.get_current_instance().setLevel("WARNING")  # or every layer's initialisation is told
    print(f"{device_name(arguments.device)}, torch {torch.__version__}")
    for name in arguments.tables:
        tables[name](arguments)


def subjects(names: str | None) -> dict[str, Subject]:
    """Return the detectors that were asked for, the reference first."""
    found = {}
    for name in [*_OTHERS, *_ZOO]:
        if names is not None and name not in (REFERENCE, *names.split(",")):
            continue
        if name in _OTHERS:
            text, paper = _OTHERS[name]
            architecture: Architecture | None = Architecture.parse(text)
            config: PurePosixPath | None = None
        else:
            entry = DETECTORS[name]
            architecture, config, paper = entry.architecture, entry.config, entry.milliseconds
        if architecture is not None:
            model = model_config(architecture, classes=_CLASSES, detector=Detector())
            found[name] = Subject(model, architecture.input_size, paper)
        else:
            assert config is not None
            model = published_model(config)
            model["backbone"]["init_cfg"] = None  # its weights are on the network
            found[name] = Subject(model, InputSize.parse(DETECTORS[name].input_size), paper)
    return found


def inference(arguments: argparse.Namespace) -> None:
    """Print a row per detector: milliseconds and ratio to the reference in each mode, and the paper's."""
    device = torch.device(arguments.device)
    modes = {name: MODES[name] for name in arguments.modes.split(",")}
    timing = Timing(images=1, warmup=max(1, arguments.images // 4), rounds=arguments.rounds)
    heads = "".join(f"{name + ' ms':>18}{'ratio':>7}" for name in modes)
    print(f"\n{'one image':18}{'input':>10}{'GFLOPs':>8}{heads}{'paper ms':>10}{'ratio':>7}")
    reference: dict[str, float] = {}
    for name, subject in subjects(arguments.models).items():
        cells = []
        for mode_name, mode in modes.items():
            with computing(_build(subject.model, device), mode, device) as network:
                samples = [_sample(subject.size, seed) for seed in range(arguments.images)]
                median, spread = measure_latency(network, samples, timing, device)
            reference.setdefault(mode_name, median)
            cells.append(f"{f'{median:.2f} ± {spread:.2f}':>18}{median / reference[mode_name]:7.2f}")
        flops = count_costs(subject.model, subject.size)[0] / 1e9
        paper = f"{subject.paper:10.1f}{subject.paper / _OTHERS[REFERENCE][1]:7.2f}"
        print(f"{name:18}{subject.size!s:>10}{flops:8.1f}{''.join(cells)}{paper}", flush=True)


def training(arguments: argparse.Namespace) -> None:
    """Print how many images of 800x600 a second E2 learns from, with both kinds of normalisation, in turn."""
    device = torch.device(arguments.device)
    architecture = DETECTORS["E2"].architecture
    assert architecture is not None
    batch = 8 if device.type == "cuda" else 1
    print(f"\ntraining of E2, batches of {batch} at {architecture.input_size}")
    kinds = {"BN": Detector(norm="BN"), "GN+WS": Detector(norm="GN", weight_standardization=True)}
    steps: dict[str, Callable[[], None]] = {}
    for name, kind in kinds.items():
        network = _build(model_config(architecture, classes=_CLASSES, detector=kind), device).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
        data = _batch(architecture.input_size, batch)
        steps[name] = functools.partial(_learn, network, optimizer, data)
    seconds = _in_turn(steps, arguments.rounds, device)
    for name, taken in seconds.items():
        print(f"{name:8}{batch / taken:8.2f} images a second{taken / seconds['BN']:7.2f} x the time of BN")


def operators(arguments: argparse.Namespace) -> None:
    """Print for each operator the time of ours and of mmcv's, at the sizes that an 800x600 image leads to."""
    from benchmarks.operators import compare

    for line in compare(torch.device(arguments.device), arguments.rounds):
        print(line)


def profile(arguments: argparse.Namespace) -> None:
    """Print E2's time by part of the detector, and the kernels that take most of it."""
    device = torch.device(arguments.device)
    architecture = DETECTORS["E2"].architecture
    assert architecture is not None
    network = _build(model_config(architecture, classes=_CLASSES, detector=Detector()), device).eval()
    samples = [_sample(architecture.input_size, seed) for seed in range(arguments.images)]
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.inference_mode(), _named_parts(network, device) as spent:
        network.test_step(samples[0])
        spent.clear()
        started = time.perf_counter()
        for sample in samples:
            network.test_step(sample)
        _wait(device)
        whole = 1000 * (time.perf_counter() - started) / len(samples)
    print(f"\nE2, {whole:.2f} ms for an image, each part waited for")
    parts = {part: 1000 * sum(times) / len(samples) for part, times in spent.items()}
    parts["the rest"] = whole - sum(parts.values())
    for part, milliseconds in parts.items():
        print(f"{part:12}{milliseconds:9.2f} ms{milliseconds / whole:7.1%}")
    with torch.inference_mode(), torch.profiler.profile(activities=activities) as profiler:
        for sample in samples[:5]:
            network.test_step(sample)
        _wait(device)
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=key, row_limit=15, max_name_column_width=60))


@contextlib.contextmanager
def computing(network: Any, mode: Mode, device: torch.device) -> Iterator[Any]:
    """Let a network compute in a mode."""
    network = network.eval()
    if mode.channels_last:
        network = network.to(memory_format=torch.channels_last)
    kind = torch.float16 if device.type == "cuda" else torch.bfloat16
    with torch.autocast(device.type, kind, enabled=mode.amp):
        yield network


@contextlib.contextmanager
def _named_parts(network: nn.Module, device: torch.device) -> Iterator[dict[str, list[float]]]:
    """Note, within the context, the seconds that calls of a detector's parts take until the device has done them."""
    spent: dict[str, list[float]] = {}

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def measure(*args: Any, **kwargs: Any) -> Any:
            _wait(device)
            started = time.perf_counter()
            result = call(*args, **kwargs)
            _wait(device)
            spent.setdefault(part, []).append(time.perf_counter() - started)
            return result

        return measure

    with contextlib.ExitStack() as patched:
        for part in _PARTS:
            module = getattr(network, part, None)
            if module is not None:
                # Heads are entered by predict, everything else by its call.
                name = "predict" if hasattr(module, "predict") else "forward"
                setattr(module, name, timed(part, getattr(module, name)))
                patched.callback(delattr, module, name)
        yield spent


def _in_turn(steps: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of each step; they take turns, so a slow moment meets all of them."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            _wait(device)
            started = time.perf_counter()
            step()
            _wait(device)
            if number:  # the first warms up
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _build(model: dict[str, Any], device: torch.device) -> Any:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        network = MODELS.build(ConfigDict(model))
    network.init_weights()
    return network.to(device)


def _image(size: InputSize, seed: int) -> torch.Tensor:
    values = np.random.default_rng(seed).integers(0, 256, (3, size.height, size.width), np.uint8)
    return torch.from_numpy(values)


def _meta(size: InputSize) -> dict[str, Any]:
    shape = (size.height, size.width)
    return {"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0), "img_id": 0}


def _sample(size: InputSize, seed: int) -> dict[str, Any]:
    return {"inputs": [_image(size, seed)], "data_samples": [DetDataSample(metainfo=_meta(size))]}


def _batch(size: InputSize, images: int) -> dict[str, Any]:
    """Return images with ten objects each."""
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
    return {"inputs": [_image(size, seed) for seed in range(images)], "data_samples": samples}


def _learn(network: Any, optimizer: torch.optim.Optimizer, data: dict[str, Any]) -> None:
    # A copy, since the preprocessor moves samples to the device in place.
    batch = {"inputs": data["inputs"], "data_samples": [sample.clone() for sample in data["data_samples"]]}
    loss, _ = network.parse_losses(network(**network.data_preprocessor(batch, True), mode="loss"))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
