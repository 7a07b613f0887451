"""Check that this package works on this machine's GPU, and measure how fast, within eight minutes.

    python -m benchmarks.gpu_check [PART ...] [--device cuda|cpu] [--minutes 8] [--output gpu_check]

processes   short searches: with default settings, with compiled layers, in mixed precision, on a GPU given by its
            unique id, and with two processes per trial
operators   the tests of the operators that this package provides instead of mmcv's compiled ones
inference   published detectors: milliseconds, the share for which the GPU is busy, and ratios beside the paper's
crowd       a small detector, timed on an idle machine and beside busy processes
training    images per second in training
memory      training memory: estimated, allocated, reserved, and as counted by the driver
loaders     images per second that processes load and resize

Writes OUTPUT.md with a table for each part, and OUTPUT.json with the same content for programs. A part that cannot run
on this machine is skipped, with the reason. With `--device cpu` all parts that do not need a GPU run, on small inputs.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger

from benchmarks.detectors import (
    CLASSES,
    MODES,
    OTHERS,
    REFERENCE,
    Subject,
    batch_of,
    build,
    computing,
    one_image,
    subjects,
    train_step,
    wait_for,
)
from smnas_optuna.detector.counting import build_on_meta
from smnas_optuna.detector.deployment import prepare_for_deployment
from smnas_optuna.detector.memory import training_memory
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.model_config import model_config
from smnas_optuna.recipe.settings import Timing
from smnas_optuna.timing.device import cpu_name, find_gpus, gpu_uuid
from smnas_optuna.timing.latency import gpu_busy_time, measure_latency

_MODELS = "E0,E2,E5,RetinaNet-R50"
# Fewest busy processes of the part crowd; there are at least as many as cores.
_CROWD = 8
# A part, or a row of it, is skipped if fewer seconds are left.
_LEAST_SECONDS = 20.0
# Longest time of a command, in seconds.
_COMMAND_SECONDS = 120.0
# Share of the remaining time that a part may take.
_SHARE = 0.5
_GIB = 2**30
_ROOT = Path(__file__).parent.parent


class Skipped(Exception):
    """A part, or a row of it, cannot run on this machine; the message says why."""


@dataclass
class Table:
    """Results of a part.

    Args:
        part: Name of the part.
        columns: Headings.
        rows: Cells of each row, as text.
        notes: Sentences about what could not run, and why.
        seconds: Time that the part took.
        has_failed: Whether a check failed.
    """

    part: str
    columns: tuple[str, ...]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    has_failed: bool = False

    def fail(self, reason: str) -> str:
        """Mark the part as failed, and return a text with the reason for a cell."""
        self.has_failed = True
        return f"**failed**: {' '.join(reason.split())}"

    def markdown(self) -> str:
        """Return the table in Markdown."""
        lines = [f"## {self.part} ({self.seconds:.0f} s)", ""]
        if self.rows:
            lines += [_line(list(self.columns)), _line(["---"] * len(self.columns)), *map(_line, self.rows), ""]
        return "\n".join([*lines, *(f"- {note}" for note in self.notes)]).rstrip() + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class Machine:
    """The device and the time limit.

    Args:
        device: The GPU, or the CPU if there is none.
        deadline: Time by ``time.monotonic()`` at which everything has to be finished.
    """

    device: torch.device
    deadline: float

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(_PARTS), metavar="PART", help=", ".join(_PARTS))
    parser.add_argument("--device", choices=["cuda", "cpu"], help="cuda if torch can use a GPU, otherwise cpu")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--output", type=Path, default=Path("gpu_check"))
    arguments = parser.parse_args()
    unknown = [name for name in arguments.parts if name not in _PARTS]
    if unknown:
        parser.error(f"{unknown[0]}: expected some of {', '.join(_PARTS)}")
    deadline = time.monotonic() + 60 * arguments.minutes
    gpus = find_gpus()
    device = arguments.device or ("cuda" if gpus.usable else "cpu")
    if device == "cuda" and not gpus.usable:
        parser.error(f"--device cuda: {gpus.problem or 'no GPU is visible'}; expected cpu")
    MMLogger.get_current_instance().setLevel("WARNING")  # otherwise the initialisation of each layer is logged
    machine = Machine(torch.device(device), deadline)
    name = torch.cuda.get_device_name(0) if machine.is_gpu else cpu_name()
    print(f"{name}, torch {torch.__version__}" + ("" if machine.is_gpu else "; without a GPU, on smaller inputs"))
    markdown, record = arguments.output.with_suffix(".md"), arguments.output.with_suffix(".json")
    tables: list[Table] = []
    for part in arguments.parts:
        share = max(_LEAST_SECONDS, _SHARE * machine.seconds_left)
        tables.append(_run(part, replace(machine, deadline=min(deadline, time.monotonic() + share))))
        # Written after each part, so that no result is lost if a later part is killed.
        text = f"# {name}, torch {torch.__version__}\n\n" + "\n".join(table.markdown() for table in tables)
        markdown.write_text(text, encoding="utf-8")
        content = {"device": name, "torch": torch.__version__, "parts": [asdict(table) for table in tables]}
        record.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"{markdown}, {record}")
    sys.exit(1 if any(table.has_failed for table in tables) else 0)


def _run(part: str, machine: Machine) -> Table:
    """Run a part, print its results and return them."""
    function, columns = _PARTS[part]
    table = Table(part, columns)
    started = time.monotonic()
    try:
        if machine.seconds_left < _LEAST_SECONDS:
            raise Skipped("no time left")
        function(machine, table)
    except Skipped as reason:
        table.notes.append(f"skipped: {reason}")
    except Exception as error:
        table.notes.append(table.fail(f"{type(error).__name__}: {error}"))
    table.seconds = time.monotonic() - started
    print(table.markdown(), flush=True)
    return table


def processes(machine: Machine, table: Table) -> None:
    """Run searches of a single trial from the command line: memory is estimated, and processes are forked to train."""
    kind = machine.device.type
    # With processes that load images, which the demo's small images would not need.
    epochs = ("--set", "structural.training.epochs=2", "--set", "structural.training.loader_workers=2")
    compiled = ("--set", "device.timing.compiled=true")
    runs: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
        "one trial": ({}, epochs),
        "one trial, timed with compiled layers": ({}, (*epochs, *compiled)),
    }
    if machine.is_gpu:
        runs["one trial in mixed precision"] = ({}, (*epochs, "--set", "structural.training.amp=true"))
        runs["by its unique identifier"] = ({"CUDA_VISIBLE_DEVICES": gpu_uuid(0)}, epochs)
    else:
        table.notes.append("skipped: mixed precision and GPU-<uuid>, which need a GPU")
    count = torch.cuda.device_count() if machine.is_gpu else 2
    if count > 1:
        two = ("--set", "device.gpus_per_trial=2")
        runs["two processes for one trial"] = ({}, (*epochs, *two))
    else:
        table.notes.append("skipped: two processes for one trial, which need two GPUs")
    search = [sys.executable, "-m", "smnas_optuna.run_study", "digits", "--n-trials", "1", "--quiet"]
    for name, (environment, options) in runs.items():
        if machine.seconds_left < 2 * _LEAST_SECONDS:
            raise Skipped(f"{name} and those after it: no time left")
        _try_command(table, machine, name, [*search, "--set", f"device.kind={kind}", *options], environment)


def _try_command(table: Table, machine: Machine, name: str, command: list[str], environment: dict[str, str]) -> None:
    """Run a command in a temporary folder, and add a row with its outcome."""
    paths = os.pathsep.join([str(_ROOT), *filter(None, sys.path)])
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            ended = subprocess.run(
                command,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": paths, **environment},
                capture_output=True,
                text=True,
                check=False,
                timeout=max(1.0, min(_COMMAND_SECONDS, machine.seconds_left)),
            )
            last_lines = [line for each in (ended.stdout, ended.stderr) for line in each.splitlines()[-1:]]
            outcome = table.fail("; ".join(last_lines)) if ended.returncode else "passed"
            if ended.returncode:
                print(f"{name}:\n{ended.stdout}{ended.stderr}", file=sys.stderr, flush=True)
        except subprocess.TimeoutExpired as expired:
            outcome = table.fail(f"not done after {expired.timeout:.0f} s")
    table.rows.append([name, outcome, f"{time.monotonic() - started:.0f}"])


def operators(machine: Machine, table: Table) -> None:
    """Run the tests of the operators on the GPU; the test suite runs them on the CPU."""
    if not machine.is_gpu:
        raise Skipped("the test suite runs these on the CPU")
    try:
        import pytest  # noqa: F401
    except ImportError:
        raise Skipped("pytest is not installed") from None
    tests = _ROOT / "tests/detector/test_mmcv_ops.py"
    # Without the fixtures of the other tests, which need packages that these do not.
    options = ["-q", "-k", "cuda", "--noconftest", "-o", "addopts=", "-o", "timeout=0"]
    command = [sys.executable, "-m", "pytest", *options, str(tests)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=machine.seconds_left)
    last = " ".join((ended.stdout + ended.stderr).strip().splitlines()[-1:])
    table.rows.append([table.fail(last) if ended.returncode else last])


def inference(machine: Machine, table: Table) -> None:
    """Time published detectors, in float32 and in mixed precision."""
    timing = Timing(warmup=5, rounds=3)
    reference: dict[str, float] = {}
    for name, subject in _chosen(machine).items():
        if machine.seconds_left < _LEAST_SECONDS:
            raise Skipped(f"{name} and those after it: no time left")
        samples = [one_image(subject.size, seed) for seed in range(20 if machine.is_gpu else 2)]
        cells = []
        for mode in ("fp32", "amp"):
            with computing(build(subject.model, machine.device), MODES[mode], machine.device) as network:
                median, spread = measure_latency(network, samples, timing, machine.device)
                busy = gpu_busy_time(network, samples) if machine.is_gpu else None
            reference.setdefault(mode, median)
            cells += [f"{median:.2f} ± {spread:.2f}", "-" if busy is None else f"{busy:.2f}"]
            cells.append(f"{median / reference[mode]:.2f}")
        published = ["-", "-"]
        if machine.is_gpu and subject.published is not None:
            published = [f"{subject.published:.1f}", f"{subject.published / OTHERS[REFERENCE][1]:.2f}"]
        table.rows.append([name, str(subject.size), *cells, *published])


def _chosen(machine: Machine) -> dict[str, Subject]:
    """Return published detectors, or on a CPU a small one."""
    if machine.is_gpu:
        return subjects(_MODELS)
    architecture = Architecture.parse("128x96 ResNet18(w=16) FPN(P2-P4,c=32) RPN 2FC")
    model = model_config(architecture, classes=CLASSES, detector=Detector())
    return {REFERENCE: Subject(model, architecture.input_size, OTHERS[REFERENCE][1])}


def crowd(machine: Machine, table: Table) -> None:
    """Time a detector alone and beside busy processes, with and without a core reserved for timing."""
    # A small detector on a GPU waits for the CPU most.
    chosen = _chosen(machine)
    name = "E0" if "E0" in chosen else REFERENCE
    subject = chosen[name]
    network = prepare_for_deployment(build(subject.model, machine.device))
    samples = [one_image(subject.size, seed) for seed in range(20 if machine.is_gpu else 2)]
    timing = Timing(warmup=5, rounds=3)
    cores = os.sched_getaffinity(0)
    reserved = {max(cores)}
    number = max(_CROWD, len(cores))
    busy = f"{number} busy processes"

    def measure(condition: str) -> None:
        median, spread = measure_latency(network, samples, timing, machine.device)
        table.rows.append([name, condition, f"{median:.2f} ± {spread:.2f}"])

    measure("idle")
    with _busy(cores, number):
        measure(busy)
    if len(cores) < 2:
        raise Skipped("a reserved core: this machine has a single core")
    with _busy(cores - reserved, number):
        os.sched_setaffinity(0, reserved)
        try:
            measure(f"{busy}, on a reserved core")
        finally:
            os.sched_setaffinity(0, cores)


@contextlib.contextmanager
def _busy(cores: set[int], number: int) -> Iterator[None]:
    """Keep cores busy with a number of processes within the context."""
    # Spawned and not forked, since this process uses the GPU.
    context = multiprocessing.get_context("spawn")
    busy = [context.Process(target=_spin, args=(cores,), daemon=True) for _ in range(number)]
    for process in busy:
        process.start()
    try:
        time.sleep(5)  # until they have imported their modules
        yield
    finally:
        for process in busy:
            process.kill()
            process.join()


def _spin(cores: set[int]) -> None:
    os.sched_setaffinity(0, cores)
    numbers = list(range(100_000))
    while True:
        numbers.sort(reverse=numbers[0] == 0)


def training(machine: Machine, table: Table) -> None:
    """Train on images of noise."""
    texts = ["512x512 ResNet18 FPN(P2-P5,c=256) RPN 2FC", "800x600 ResNet50 FPN(P2-P6,c=256) RPN 2FC"]
    batches: tuple[int, ...] = (4, 16)
    if not machine.is_gpu:
        texts, batches = ["128x96 ResNet18(w=16) FPN(P2-P4,c=32) RPN 2FC"], (4,)
    kinds = {"BN": Detector(), "GN+WS": Detector(norm="GN", weight_standardization=True)}
    for text in texts:
        architecture = Architecture.parse(text)
        for kind, detector in kinds.items():
            for precision in ("FP32", "TF32", "AMP") if machine.is_gpu else ("FP32",):
                row = [text, kind, precision]
                for batch in batches:
                    if machine.seconds_left < _LEAST_SECONDS:
                        raise Skipped(f"{text}, {kind}, {precision} and those after it: no time left")
                    row.append(_images_per_second(architecture, detector, precision, batch, machine))
                table.rows.append(row + ["-"] * (len(table.columns) - len(row)))


def _images_per_second(
    architecture: Architecture, detector: Detector, precision: str, batch: int, machine: Machine
) -> str:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "TF32"
    try:
        network = build(model_config(architecture, classes=CLASSES, detector=detector), machine.device).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, fused=machine.is_gpu)
        data = batch_of(architecture.input_size, batch)
        steps = 0
        train_step(network, optimizer, data, amp=precision == "AMP")
        wait_for(machine.device)
        started = time.perf_counter()
        while steps < 3 or (steps < 20 and time.perf_counter() - started < 2):
            train_step(network, optimizer, data, amp=precision == "AMP")
            steps += 1
        wait_for(machine.device)
        return f"{batch * steps / (time.perf_counter() - started):.1f}"
    except torch.OutOfMemoryError:
        return "out of memory"
    finally:
        torch.cuda.empty_cache()


def memory(machine: Machine, table: Table) -> None:
    """Compare estimates with the memory that training uses on a GPU; the test suite does the same for a CPU."""
    if not machine.is_gpu:
        raise Skipped("the test suite compares them on the CPU")
    texts = {
        "GA-RPN": "1333x800 ResNet50 FPN(P2-P6,c=256) GA-RPN 2FC",
        "RetinaNet": "1333x800 ResNet50 FPN(P2-P6,c=256) RetinaNet",
        "no FPN": "800x600 ResNet50 RPN 2FC",
    }
    for name, text in texts.items():
        architecture = Architecture.parse(text)
        config = model_config(architecture, classes=CLASSES, detector=Detector())
        for amp in (False, True):
            if machine.seconds_left < _LEAST_SECONDS:
                raise Skipped(f"{name} and those after it: no time left")
            estimate = training_memory(build_on_meta(config), architecture.input_size, 2, boxes=10, amp=amp)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            network = build(config, machine.device).train()
            optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4, fused=True)
            for _ in range(2):
                train_step(network, optimizer, batch_of(architecture.input_size, 2), amp=amp)
            free, total = torch.cuda.mem_get_info()
            allocated = torch.cuda.max_memory_allocated() - before
            numbers = [estimate, allocated, torch.cuda.max_memory_reserved(), total - free]
            cells = [f"{number / _GIB:.2f}" for number in numbers]
            table.rows.append([name, "AMP" if amp else "FP32", *cells, f"{estimate / allocated:.2f}"])
            del network, optimizer


def loaders(machine: Machine, table: Table) -> None:
    """Load and resize images of the demo's kind in processes, as in training."""
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner

    from smnas_optuna.data.datasets import open_dataset
    from smnas_optuna.recipe.settings import DigitsDataset
    from smnas_optuna.training.loaders import loader_config

    init_default_scope("mmdet")
    dataset = open_dataset(DigitsDataset(kind="digits", train_images=256, val_images=4, width=640, height=480))
    pipeline: list[dict[str, Any]] = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "Resize", "scale": (512, 512), "keep_ratio": True},
        {"type": "PackDetInputs"},
    ]
    cores = len(os.sched_getaffinity(0))
    for workers in (0, 2, 4, 8):
        if workers > cores:
            table.notes.append(f"skipped: {workers} processes, with {cores} cores")
            continue
        config = loader_config(
            dataset.train,
            dataset.classes,
            pipeline,
            training=True,
            batch_size=16,
            workers=workers,
            pinned=machine.is_gpu,
        )
        loader = Runner.build_dataloader(config, seed=0)
        images = sum(len(batch["inputs"]) for batch in loader)  # starts the processes and caches the files
        started = time.perf_counter()
        images = sum(len(batch["inputs"]) for batch in loader)
        table.rows.append([str(workers), f"{images / (time.perf_counter() - started):.0f}"])
        del loader


_PARTS: dict[str, tuple[Callable[[Machine, Table], None], tuple[str, ...]]] = {
    "processes": (processes, ("check", "outcome", "seconds")),
    "operators": (operators, ("tests",)),
    "inference": (
        inference,
        (
            *(
                "detector",
                "input",
                "FP32 ms, TF32 in convolutions",
                "GPU busy",
                "ratio",
                "AMP ms",
                "GPU busy",
                "ratio",
            ),
            *("paper's ms", "paper's ratio"),
        ),
    ),
    "crowd": (crowd, ("detector", "machine", "ms")),
    "training": (training, ("detector", "layers", "precision", "batch 4", "batch 16")),
    "memory": (memory, ("detector", "precision", "estimate GiB", "allocated", "reserved", "driver", "ratio")),
    "loaders": (loaders, ("processes", "images per second")),
}


if __name__ == "__main__":
    main()
