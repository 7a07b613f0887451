"""Training with several processes, one per GPU.

A search starts the processes itself, see :func:`run_processes`; for a final training torch's launcher does, such as
``torchrun --nproc-per-node 8 -m smnas_optuna.train found.py``. Importing this module does not load torch.
"""

import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import psutil

from smnas_optuna.errors import UserError
from smnas_optuna.training.server import follow_parent

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")

# Seconds within which torch's launcher certainly ends the other processes of a failed one.
_UNTIL_ENDED = 30
# How long processes wait for each other. One may wait while a detector is timed on its GPU, see device_lock.py.
_LONGEST_WAIT = timedelta(hours=1)


def is_launched() -> bool:
    """Return whether torch's launcher or :func:`run_processes` started this process."""
    return all(name in os.environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))


def process_count() -> int:
    """Return how many processes train together, on all machines."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def processes_here() -> int:
    """Return how many processes of this training run on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if is_launched() else 1


def is_first() -> bool:
    """Return whether this process is the one of its training that prints and writes files."""
    return not is_launched() or os.environ["RANK"] == "0"


@contextlib.contextmanager
def report_error_once() -> Iterator[None]:
    """Let only the first process raise a UserError that all processes of a training run into.

    The others wait until torch's launcher ends them.
    """
    try:
        yield
    except UserError:
        if is_first():
            raise
        time.sleep(_UNTIL_ENDED)
        sys.exit(2)


def backend(kind: str) -> str:
    """Return the backend of ``torch.distributed`` for a kind of device, ``cpu`` or ``cuda``."""
    return "nccl" if kind == "cuda" else "gloo"


def call_in_child(function: Callable[[_Argument], _Result], argument: _Argument) -> _Result:
    """Call a function in a short-lived child process and return its result.

    For functions that run a backward pass in a process that forks later. On a machine with a GPU a backward pass starts
    autograd's threads, even on the meta device, and processes that are forked afterwards cannot train.
    """
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=fork, initializer=follow_parent) as child:
        return child.submit(function, argument).result()


class ProcessFailed(Exception):
    """One of several processes that train together has ended with an error."""


def run_processes(function: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Call a function in several processes that are forked from this one, which must not have used CUDA.

    Args:
        function: Function to call in each process. It calls :func:`join` to connect the processes.
        processes: Number of processes.
        arguments: Arguments of the function. One more follows them: the path that the function passes to :func:`join`
            as ``meeting``.

    Raises:
        ProcessFailed: A process has ended with an error; the others have been killed.
    """
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

    # All processes are on this machine, so they must not listen on other interfaces.
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        os.environ.setdefault(variable, _loopback())
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        try:
            start_processes(  # type: ignore[no-untyped-call]  # torch's is untyped
                _start, (processes, function, (*arguments, meeting)), processes, start_method="fork"
            )
        except ProcessExitedException as error:
            ended = error.signal_name or f"exit code {error.exit_code}"
            raise ProcessFailed(f"process {error.error_index} of {processes}: {ended}") from None
        except ProcessRaisedException as error:
            message = str(error).strip().splitlines()[-1]
            raise ProcessFailed(f"process {error.error_index} of {processes}: {message}") from None


def _loopback() -> str:
    """Return the name of the loopback network interface."""
    addresses = psutil.net_if_addrs().items()
    return next(name for name, each in addresses if any(address.address == "127.0.0.1" for address in each))


def _start(rank: int, processes: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Set the environment variables that torch's launcher would set, and call the function."""
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank)})
    os.environ.update({"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)})
    function(*arguments)


def join(config: Any, kind: str, meeting: Path | None = None) -> None:
    """Connect this process with the others of its training, and change an MMEngine config for distributed training.

    From now on only the first process prints.

    Args:
        config: Config for MMEngine's Runner; changed in place.
        kind: Kind of device, ``cpu`` or ``cuda``. With CUDA, process ``i`` of a machine uses its GPU ``i``.
        meeting: File through which processes of one machine find each other; None to use the address that torch's
            launcher has set.
    """
    import torch

    config.launcher = "pytorch"
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        # MMEngine's default would place the model on a GPU.
        config.model_wrapper_cfg = {
            "type": "MMDistributedDataParallel",
            "find_unused_parameters": config.get("find_unused_parameters", False),
            "device_ids": None,
        }
    torch.distributed.init_process_group(
        backend(kind),
        init_method="env://" if meeting is None else f"file://{meeting}",
        rank=int(os.environ["RANK"]),
        world_size=process_count(),
        timeout=_LONGEST_WAIT,
    )
    if not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # until the process ends
