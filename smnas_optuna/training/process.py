"""Training processes: each trial has its own, forked from a server that has loaded torch and MMDetection once.

A crash, an out-of-memory kill or a hang then costs that trial only, and a trial does not wait for imports. This side
knows no torch.
"""

import errno
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

from smnas_optuna.errors import EvaluationInterrupted, UserError
from smnas_optuna.timing import gpus
from smnas_optuna.training.job import Comparison, CostRequest, Costs, Demand, Event, Failure, Job, Target
from smnas_optuna.training.outcome import Outcome

_TRAINING = "smnas_optuna.training.training"
_PRELOADED = "smnas_optuna.training.preloaded"
_SHOW_GPUS = "smnas_optuna.timing.show_gpus"
context = multiprocessing.get_context("forkserver")

# How often the time of an evaluation is looked at, in seconds.
_CLOCK_SECONDS = 1.0
# How long a process that has said its last may take to end by itself, in seconds.
_ENDING_SECONDS = 0.5

# Errors of files with which any other architecture would have failed as well: a disk is full, a quota or a size limit
# exceeded, a disk broken, a file system read-only or gone.
_ENVIRONMENT_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ENODEV,
}


# What Python, torch, cuBLAS, cuDNN and NCCL say, in lower case, where memory does not suffice.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "status_alloc_failed",
    "allocation_failed",
    "error_out_of_memory",
)


class Waitable(Protocol):
    """A file, socket or connection that can be waited for until it is readable."""

    def fileno(self) -> int:
        """Return its file descriptor."""


def preload(*, training: bool = True) -> None:
    """Start the server that processes are forked from, which loads what they need while the caller goes on.

    Args:
        training: Load torch and MMDetection too, which takes seconds; without it only what is loaded here.
    """
    # torch's threads otherwise spin while they wait, and those of forward and backward pass take turns at spinning: a
    # small network trained 15 times slower on 2 cores than without.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A forked process imports the main module again, which is quick where all that it imports is there already.
    main = getattr(sys.modules["__main__"].__spec__, "name", None)
    loaded = [name for name in sys.modules if name.startswith("smnas_optuna.") and name != main]
    context.set_forkserver_preload([*([_PRELOADED] if training else []), *loaded, _SHOW_GPUS])
    # Ctrl-C is for the process that the user started, also while the server is still loading.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries look for a GPU when they are imported. No process that is forked from the server could use CUDA if they
    # asked CUDA itself. They ask NVML, which does not know parts of a GPU (MIG), but need not ask if none is visible.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    try:
        with gpus.hidden():
            forkserver.ensure_running()
    except OSError as error:
        if "path too long" not in str(error):
            raise
        raise UserError(f"TMPDIR {tempfile.gettempdir()}: {error}; expected a folder with a shorter name") from None
    finally:
        signal.signal(signal.SIGINT, handler)


def probe(demand: Demand, output: Path) -> Target:
    """Return the device that a run asks for, having made sure that it and the pre-trained weights are there.

    Args:
        demand: Says which device and which weights.
        output: File for whatever the process writes besides.

    Raises:
        UserError: There is no such device, or weights cannot be had.
    """
    (target,) = _call("probe", demand, output)
    assert isinstance(target, Target)
    return target


def visible_gpus(output: Path) -> tuple[tuple[str, ...], str]:
    """Return the names of the CUDA GPUs that this process may use, as Job.gpus takes them.

    With them goes what is wrong with other GPUs, one line, or an empty text.
    """
    (answer,) = _call("visible_gpus", None, output)
    assert isinstance(answer, tuple)
    names, problem = answer
    return names, problem


def count(request: CostRequest, output: Path) -> list[Costs]:
    """Return the costs of architectures, in their order."""
    costs = _call("count", request, output)
    return [cost for cost in costs if isinstance(cost, Costs)]


def draw(comparison: Comparison, output: Path) -> None:
    """Draw what detectors find beside the ground truth.

    Raises:
        UserError: There is no such image, the data set is gone, or the picture cannot be written.
    """
    _call("draw", comparison, output)


def _call(function: str, argument: object, output: Path) -> list[object]:
    answers = list(_run(function, argument, output, time_limit=None))
    for answer in answers:
        if isinstance(answer, UserError):
            raise answer
        if isinstance(answer, Failure):
            raise RuntimeError(f"{answer.reason}; see {output}")
    return answers


def evaluate(job: Job, until: Sequence[Waitable] = ()) -> Generator[Event, None, None]:
    """Train, evaluate and time an architecture, and yield what happens, last a Scores, a TooLarge or a Failure.

    Closing the iterator ends the process.

    Args:
        job: What to train, and where.
        until: When one of these becomes readable, the training process and those that it started are killed at once,
            and the iterator ends without a last event.
    """
    limit = job.training.time_limit_minutes
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        yield failure_of(error, job.folder)
        return
    output = job.folder / "output.log"
    with closing(_run("evaluate", job, output, time_limit=limit and limit * 60, until=until)) as events:
        for event in events:
            if isinstance(event, UserError):
                raise event
            assert isinstance(event, Event)
            yield event
            if isinstance(event, Failure):
                # Other processes of the same training may fail for want of the one that did.
                return


def _run(
    function: str, argument: object, output: Path, time_limit: float | None, until: Sequence[Waitable] = ()
) -> Generator[object, None, None]:
    """Call a function of the training module in a process of its own and yield what it reports."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(function, argument, output, sender, _visible_devices(argument)))
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
        yield _death(process.exitcode, _memory_kills() > kills)
    finally:
        _end(process, patience)
        receiver.close()


class _RunningTime:
    """Counts the seconds since it was made, without those in which this process was suspended; look often."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._looked = time.monotonic()

    def seconds(self) -> float:
        now = time.monotonic()
        # A suspended process looks late; one that waits for a message looks in time.
        self._seconds += min(now - self._looked, 2 * _CLOCK_SECONDS)
        self._looked = now
        return self._seconds


def _visible_devices(argument: object) -> str | None:
    """Return CUDA_VISIBLE_DEVICES for a process: the GPUs that are asked for, or those of this process as of now."""
    chosen = getattr(argument, "gpus", None)
    return os.environ.get(gpus.VARIABLE) if chosen is None else ",".join(chosen)


def _death(exit_code: int | None, out_of_memory: bool) -> Failure:
    if exit_code == -signal.SIGKILL and out_of_memory:
        return Failure("out of memory: the system killed the training process", Outcome.OUT_OF_MEMORY)
    if exit_code is not None and exit_code < 0:
        return Failure(f"crashed: the training process got {signal.Signals(-exit_code).name}")
    return Failure(f"crashed: the training process ended with exit code {exit_code}")


def _memory_kills() -> int:
    """Return how many processes the kernel has killed for want of memory; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _end(process: multiprocessing.process.BaseProcess, patience: float) -> None:
    """End a process together with those it started: it leads a process group.

    Args:
        process: A training process.
        patience: How long it may take to end by itself, in seconds.
    """
    process.join(patience)
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.join()


def _serve(function: str, argument: object, output: Path, sender: Connection, visible_devices: str | None) -> None:
    """Run in the training process."""
    # The environment here is that of the server's start.
    gpus.make_visible(visible_devices)
    follow_parent()
    call: Callable[[object, Callable[[object], None]], None] = getattr(importlib.import_module(_TRAINING), function)
    try:
        _log_to(output)
        call(argument, sender.send)
    except UserError as error:
        sender.send(error)
    except BaseException as error:
        # The log may be what cannot be written.
        with suppress(OSError):
            traceback.print_exc()
        sender.send(failure_of(error, output.parent))
    sender.send(None)
    sender.close()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Not by way of the interpreter's end, which can hang in libraries' threads and would take a second.
    os._exit(0)


def _log_to(output: Path) -> None:
    """Append what this process and its libraries print to a file."""
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def failure_of(error: BaseException, folder: Path) -> Failure:
    """Say why an architecture could not be evaluated, and whether any other would have failed as well.

    Args:
        error: What ended the evaluation.
        folder: That the evaluation writes to.
    """
    if isinstance(error, FloatingPointError):
        return Failure(_one_line(error), Outcome.DIVERGED)
    if isinstance(error, EvaluationInterrupted):
        return Failure(_one_line(error), Outcome.INTERRUPTED)
    environment = _environment_error(error)
    if environment is not None:
        return Failure(f"{type(environment).__name__}: {_one_line(environment)}", Outcome.INTERRUPTED)
    if _is_out_of_memory(error):
        return Failure(f"out of memory: {_one_line(error)}", Outcome.OUT_OF_MEMORY)
    if _is_gpu_fault(error):
        return Failure(f"{type(error).__name__}: {_one_line(error)}", Outcome.INTERRUPTED)
    reason = f"{type(error).__name__}: {_one_line(error)}"
    if not os.path.isdir(folder):
        return Failure(f"{folder} is not there: {reason}", Outcome.INTERRUPTED)
    return Failure(reason)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _environment_error(error: BaseException | None) -> OSError | None:
    """Return the error of a file system or device that is behind an error, if there is one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _ENVIRONMENT_ERRORS:
            return error
        error = error.__cause__ or error.__context__
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    text = str(error).lower()
    return any(words in text for words in _OUT_OF_MEMORY)


def _is_gpu_fault(error: BaseException) -> bool:
    """Tell whether a GPU, its driver or the connection between GPUs has failed, rather than a kernel's own check."""
    # By their names, since this module does not load torch.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"AcceleratorError", "DistBackendError"}) and "device-side assert" not in str(error)


def follow_parent() -> None:
    """Put this process out of reach of the terminal's Ctrl-C, and end it and those it starts when its parent ends."""
    os.setsid()
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(os.getpid(), signal.SIGKILL)
