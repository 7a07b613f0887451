"""Training processes: each trial has its own, so a crash, an out-of-memory kill or a hang affects one trial only.

This module runs in the calling process and does not import torch.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

from smnas_optuna.errors import UserError
from smnas_optuna.recipe.recipe import Recipe
from smnas_optuna.timing import gpus
from smnas_optuna.training.failure import failure_of, failure_of_exit
from smnas_optuna.training.job import (
    BestRequest,
    BestWritten,
    Comparison,
    CostRequest,
    Costs,
    DeviceRequest,
    Event,
    Failure,
    Job,
    Machine,
    SpeedRequest,
    Target,
    WeightsRequest,
)
from smnas_optuna.training.outcome import Outcome
from smnas_optuna.training.server import context, follow_parent

# Seconds between two checks of an evaluation's time limit.
_CLOCK_SECONDS = 1.0
# Seconds that a process may take to end by itself after its last event.
_ENDING_SECONDS = 0.5


class Waitable(Protocol):
    """An object such as a file, socket or connection that :func:`multiprocessing.connection.wait` accepts."""

    def fileno(self) -> int:
        """Return the file descriptor."""


def probe(request: DeviceRequest, output: Path) -> Target:
    """Choose the device that a run requests, and fetch the pre-trained weights.

    Args:
        request: The requested device and weights.
        output: File for the process's output.

    Raises:
        UserError: The device is not available, or weights cannot be fetched or do not fit.
    """
    (target,) = _call("device_choice.probe", request, output)
    assert isinstance(target, Target)
    return target


def visible_gpus(output: Path) -> tuple[tuple[str, ...], str]:
    """Return the names of the CUDA GPUs that this process may use, see ``Job.gpus``.

    The second value says in one line why other GPUs cannot be used; it is empty if all can.
    """
    (answer,) = _call("device_choice.visible_gpus", None, output)
    assert isinstance(answer, tuple)
    names, problem = answer
    return names, problem


def count(request: CostRequest, output: Path) -> list[Costs]:
    """Return the costs of architectures, in the same order.

    Args:
        request: The architectures.
        output: File for the process's output.
    """
    costs = _call("training.count", request, output)
    return [cost for cost in costs if isinstance(cost, Costs)]


def describe_weights(request: WeightsRequest, output: Path) -> list[str]:
    """Return in words what each architecture would start from, in the same order; nothing is downloaded.

    Args:
        request: The architectures, and where to look.
        output: File for the process's output.
    """
    return [str(answer) for answer in _call("initial_weights.describe_weights", request, output)]


def describe_machine(output: Path) -> Machine:
    """Return the device of this machine that a search would use; ``output`` is a file for the process's output."""
    (machine,) = _call("machine.describe_machine", None, output)
    assert isinstance(machine, Machine)
    return machine


def usable_weights(request: WeightsRequest, output: Path) -> list[str]:
    """Return what each architecture can start from on this machine, in the same order; empty for random weights only.

    Args:
        request: The architectures, and where to look.
        output: File for the process's output.
    """
    return [str(answer) for answer in _call("machine.usable_weights", request, output)]


def measure_speed(request: SpeedRequest, output: Path) -> list[float]:
    """Return the seconds that each architecture takes for a training image, in the same order.

    Args:
        request: The architectures, and how to train.
        output: File for the process's output.
    """
    return [answer for answer in _call("machine.measure_speed", request, output) if isinstance(answer, float)]


def check_backbones(recipe: Recipe, output: Path) -> None:
    """Check that all backbones of stage one's space exist, and have the levels that its necks and heads use.

    Args:
        recipe: The recipe.
        output: File for the process's output.

    Raises:
        UserError: A backbone does not exist, or lacks a level.
    """
    _call("backbone_check.check_backbones", recipe, output)


def draw(comparison: Comparison, output: Path) -> None:
    """Draw detections of several detectors beside the ground truth.

    Args:
        comparison: The detectors and images.
        output: File for the process's output.

    Raises:
        UserError: An image or the data set is absent, weights belong to another trial, or the picture cannot be
            written.
    """
    _call("drawing.draw", comparison, output)


def write_best(request: BestRequest, output: Path) -> BestWritten:
    """Put a trained detector into a folder of its own, with what is needed to use it.

    Args:
        request: The detector and the folder.
        output: File for the process's output.

    Raises:
        UserError: The weights are absent or belong to another trial, or the folder cannot be written.
    """
    (written,) = _call("best.write_best", request, output)
    assert isinstance(written, BestWritten)
    return written


def _call(function: str, argument: object, output: Path) -> list[object]:
    answers = list(_run(function, argument, output, time_limit=None))
    for answer in answers:
        if isinstance(answer, UserError):
            raise answer
        if isinstance(answer, Failure):
            raise RuntimeError(f"{answer.reason}; see {output}")
    return answers


def evaluate(job: Job, until: Sequence[Waitable] = ()) -> Generator[Event, None, None]:
    """Train, evaluate and time an architecture in a process of its own, and yield the events that it reports.

    The last event is a Scores, a TooLarge or a Failure. Closing the generator ends the process.

    Args:
        job: The request.
        until: When one of these becomes readable, the training process and its children are killed at once, and the
            generator ends without a last event.
    """
    limit = job.training.time_limit_minutes
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        yield failure_of(error, job.folder)
        return
    output = job.folder / "output.log"
    with closing(_run("training.evaluate", job, output, time_limit=limit and limit * 60, until=until)) as events:
        for event in events:
            if isinstance(event, UserError):
                raise event
            assert isinstance(event, Event)
            yield event
            if isinstance(event, Failure):
                # Other processes of the same training may fail as a consequence; their failures do not matter.
                return


def _run(
    function: str, argument: object, output: Path, time_limit: float | None, until: Sequence[Waitable] = ()
) -> Generator[object, None, None]:
    """Call a function, such as ``training.evaluate``, in a process of its own, and yield what it reports."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_child, args=(function, argument, output, sender, _visible_devices(argument)))
    clock = _RunningTime()
    kills = _memory_kills()
    process.start()
    sender.close()
    patience = _ENDING_SECONDS
    try:
        while True:
            ready = wait([receiver, *(each.fileno() for each in until)], None if time_limit is None else _CLOCK_SECONDS)
            if any(each is not receiver for each in ready):
                patience = 0.0
                return
            elapsed = clock.seconds()
            if time_limit is not None and elapsed >= time_limit:
                yield Failure(f"time limit: over {time_limit:.0f} s", Outcome.TIMED_OUT)
                return
            if not ready:
                continue
            try:
                answer = receiver.recv()
            except EOFError:
                break
            if answer is None:
                return
            yield answer
        process.join()
        yield failure_of_exit(process.exitcode, _memory_kills() > kills)
    finally:
        _end_process(process, patience)
        receiver.close()


class _RunningTime:
    """Measures the time since its creation, without that in which this process was suspended.

    Call ``seconds`` at least every ``_CLOCK_SECONDS``: a longer pause is taken for a suspension.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._last_call = time.monotonic()

    def seconds(self) -> float:
        now = time.monotonic()
        self._seconds += min(now - self._last_call, 2 * _CLOCK_SECONDS)
        self._last_call = now
        return self._seconds


def _visible_devices(argument: object) -> str | None:
    """Return CUDA_VISIBLE_DEVICES for a process: the requested GPUs, or the current value of this process."""
    chosen = getattr(argument, "gpus", None)
    return os.environ.get(gpus.VARIABLE) if chosen is None else ",".join(chosen)


def _memory_kills() -> int:
    """Return how many processes the kernel has killed because memory ran out; 0 if unknown."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _end_process(process: multiprocessing.process.BaseProcess, patience: float) -> None:
    """End a training process and its children, which are in the process group that it leads.

    Args:
        process: The training process.
        patience: Seconds that the process may take to end by itself.
    """
    process.join(patience)
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.join()


def _run_child(function: str, argument: object, output: Path, sender: Connection, visible_devices: str | None) -> None:
    """Call a function of this room and send what it reports; runs in the training process."""
    # This process has inherited the environment that the server was started with.
    gpus.make_visible(visible_devices)
    follow_parent()
    module, name = function.split(".")
    loaded = importlib.import_module(f"smnas_optuna.training.{module}")
    call: Callable[[object, Callable[[object], None]], None] = getattr(loaded, name)
    try:
        _log_to(output)
        call(argument, sender.send)
    except UserError as error:
        sender.send(error)
    except BaseException as error:
        # Writing the log may have been what failed.
        with suppress(OSError):
            traceback.print_exc()
        sender.send(failure_of(error, output.parent))
    sender.send(None)
    sender.close()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Skips the interpreter's shutdown, which takes a second and may hang in threads of libraries.
    os._exit(0)


def _log_to(output: Path) -> None:
    """Append the output of this process and its libraries to a file."""
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
