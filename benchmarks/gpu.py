"""Published detectors on this machine's device, compared with the paper's times on a V100.

    python -m benchmarks.gpu [inference] [training] [operators] [profile]
        [--device cuda|cpu] [--models E0,E2,...] [--modes fp32,amp,...] [--images N] [--rounds N]

inference   median milliseconds per image and their spread, for each detector and mode, and the ratio to Faster R-CNN
            with ResNet50 at 800x600, beside the same ratio in the paper (Tables 1 to 3)
training    images per second of E2 with group normalisation and weight standardisation, and with batch normalisation
operators   this package's operators compared with mmcv's compiled ones, if those are installed
profile     time of E2 by part of the detector and by kernel

Each table is measured in one process on one device, so its ratios are comparable. Networks have random weights. Their
convolutions take the same time as those of trained networks, and so do the proposals, whose number is always the RPN's
maximum. Only the post-processing of final detections, which random networks do not make, is not included.
"""

import argparse
import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.logging import MMLogger
from torch import nn

from benchmarks.detectors import (
    CLASSES,
    MODES,
    OTHERS,
    REFERENCE,
    batch_of,
    build,
    computing,
    in_turn,
    one_image,
    subjects,
    train_step,
    wait_for,
)
from smnas_optuna.detector import layers  # noqa: F401  # provides mmcv's operators, without which mmdet is not loaded
from smnas_optuna.detector.counting import count_costs
from smnas_optuna.detector.zoo import DETECTORS
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.model_config import model_config
from smnas_optuna.recipe.settings import Timing
from smnas_optuna.timing.device import cpu_name
from smnas_optuna.timing.latency import measure_latency

_PARTS = ("backbone", "neck", "rpn_head", "roi_head", "bbox_head")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {"inference": inference, "training": training, "operators": operators, "profile": profile}
    parser.add_argument("tables", nargs="*", default=list(tables), metavar="TABLE", help=", ".join(tables))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--models", help="comma-separated names of detectors; all if not given")
    parser.add_argument("--modes", default=",".join(MODES), help="comma-separated modes of the table inference")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.tables if name not in tables]
    if unknown:
        parser.error(f"{unknown[0]}: expected some of {', '.join(tables)}")
    MMLogger.get_current_instance().setLevel("WARNING")  # otherwise the initialisation of each layer is logged
    name = torch.cuda.get_device_name(0) if arguments.device == "cuda" else cpu_name()
    print(f"{name}, torch {torch.__version__}")
    for name in arguments.tables:
        tables[name](arguments)


def inference(arguments: argparse.Namespace) -> None:
    """Print a row per detector: milliseconds and ratio to the reference, in each mode and in the paper."""
    device = torch.device(arguments.device)
    modes = {name: MODES[name] for name in arguments.modes.split(",")}
    timing = Timing(images=1, warmup=max(1, arguments.images // 4), rounds=arguments.rounds)
    heads = "".join(f"{name + ' ms':>18}{'ratio':>7}" for name in modes)
    print(f"\n{'one image':18}{'input':>10}{'GFLOPs':>8}{heads}{'paper ms':>10}{'ratio':>7}")
    reference: dict[str, float] = {}
    for name, subject in subjects(arguments.models).items():
        cells = []
        for mode_name, mode in modes.items():
            with computing(build(subject.model, device), mode, device) as network:
                samples = [one_image(subject.size, seed) for seed in range(arguments.images)]
                median, spread = measure_latency(network, samples, timing, device)
            reference.setdefault(mode_name, median)
            cells.append(f"{f'{median:.2f} ± {spread:.2f}':>18}{median / reference[mode_name]:7.2f}")
        flops = count_costs(subject.model, subject.size)[0] / 1e9
        time = subject.published
        paper = f"{time:10.1f}{time / OTHERS[REFERENCE][1]:7.2f}" if time is not None else ""
        print(f"{name:18}{subject.size!s:>10}{flops:8.1f}{''.join(cells)}{paper}", flush=True)


def training(arguments: argparse.Namespace) -> None:
    """Print how many images of 800x600 per second E2 trains on, with both kinds of normalisation."""
    device = torch.device(arguments.device)
    architecture = DETECTORS["E2"].architecture
    assert architecture is not None
    batch = 8 if device.type == "cuda" else 1
    print(f"\ntraining of E2, batches of {batch} at {architecture.input_size}")
    kinds = {"BN": Detector(norm="BN"), "GN+WS": Detector(norm="GN", weight_standardization=True)}
    steps: dict[str, Callable[[], None]] = {}
    for name, kind in kinds.items():
        network = build(model_config(architecture, classes=CLASSES, detector=kind), device).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
        data = batch_of(architecture.input_size, batch)
        steps[name] = functools.partial(train_step, network, optimizer, data)
    seconds = in_turn(steps, arguments.rounds, device)
    for name, taken in seconds.items():
        print(f"{name:8}{batch / taken:8.2f} images per second{taken / seconds['BN']:7.2f} x the time of BN")


def operators(arguments: argparse.Namespace) -> None:
    """Print the time of each operator of this package and of mmcv, with the sizes for an 800x600 image."""
    from benchmarks.operators import compare

    for line in compare(torch.device(arguments.device), arguments.rounds):
        print(line)


def profile(arguments: argparse.Namespace) -> None:
    """Print E2's time by part of the detector, and the kernels that take most of it."""
    device = torch.device(arguments.device)
    architecture = DETECTORS["E2"].architecture
    assert architecture is not None
    network = build(model_config(architecture, classes=CLASSES, detector=Detector()), device).eval()
    samples = [one_image(architecture.input_size, seed) for seed in range(arguments.images)]
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.inference_mode(), _named_parts(network, device) as spent:
        network.test_step(samples[0])
        spent.clear()
        started = time.perf_counter()
        for sample in samples:
            network.test_step(sample)
        wait_for(device)
        whole = 1000 * (time.perf_counter() - started) / len(samples)
    print(f"\nE2, {whole:.2f} ms per image, waiting for the device after each part")
    parts = {part: 1000 * sum(times) / len(samples) for part, times in spent.items()}
    parts["other"] = whole - sum(parts.values())
    for part, milliseconds in parts.items():
        print(f"{part:12}{milliseconds:9.2f} ms{milliseconds / whole:7.1%}")
    with torch.inference_mode(), torch.profiler.profile(activities=activities) as profiler:
        for sample in samples[:5]:
            network.test_step(sample)
        wait_for(device)
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=key, row_limit=15, max_name_column_width=60))


@contextlib.contextmanager
def _named_parts(network: nn.Module, device: torch.device) -> Iterator[dict[str, list[float]]]:
    """Record, within the context, the seconds that each call of a detector's parts takes, including the device."""
    spent: dict[str, list[float]] = {}

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def measure(*args: Any, **kwargs: Any) -> Any:
            wait_for(device)
            started = time.perf_counter()
            result = call(*args, **kwargs)
            wait_for(device)
            spent.setdefault(part, []).append(time.perf_counter() - started)
            return result

        return measure

    with contextlib.ExitStack() as patched:
        for part in _PARTS:
            module = getattr(network, part, None)
            if module is not None:
                # Detectors call predict of heads, and forward of other modules.
                name = "predict" if hasattr(module, "predict") else "forward"
                setattr(module, name, timed(part, getattr(module, name)))
                patched.callback(delattr, module, name)
        yield spent


if __name__ == "__main__":
    main()
