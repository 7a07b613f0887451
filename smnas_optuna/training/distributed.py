"""The processes of one training, one per GPU.

A search starts them itself, see :func:`run_processes`; ``torchrun --nproc-per-node 8 -m smnas_optuna.train found.py``
starts eight. Nothing here loads torch by itself.
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
from smnas_optuna.training.process import follow_parent

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")

# The launcher looks at its processes ten times a second.
_UNTIL_ENDED = 30
# For each other. One may have to wait while a detector is timed on its GPU, see device_lock.py.
_LONGEST_WAIT = timedelta(hours=1)


def is_launched() -> bool:
    """Tell whether this process is one of several that train together."""
    return all(name in os.environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))


def process_count() -> int:
    """Return how many processes train together, on all machines."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def processes_here() -> int:
    """Return how many of them are on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if is_launched() else 1


def is_first() -> bool:
    """Tell whether this process is the one that prints and writes files."""
    return not is_launched() or os.environ["RANK"] == "0"


@contextlib.contextmanager
def told_once() -> Iterator[None]:
    """Have only the first process report a mistake that all of them see, before the launcher ends them."""
    try:
        yield
    except UserError:
        if is_first():
            raise
        time.sleep(_UNTIL_ENDED)
        sys.exit(2)


def backend(kind: str) -> str:
    """Return what processes on a kind of device, ``cpu`` or ``cuda``, talk through."""
    return "nccl" if kind == "cuda" else "gloo"


def in_child(function: Callable[[_Argument], _Result], argument: _Argument) -> _Result:
    """Return what a function returns in a short-lived child process.

    A backward pass starts autograd's threads where there is a GPU, even on the meta device, and processes that are
    forked after that cannot train.
    """
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=fork, initializer=follow_parent) as child:
        return child.submit(function, argument).result()


class ProcessFailed(Exception):
    """One of several processes has ended with an error."""


def run_processes(function: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Call a function in several processes of this machine, forked from this one, which must not have used CUDA.

    Args:
        function: Called with the arguments; it joins the others with :func:`join`.
        processes: How many.
        arguments: Of the function. The last one of :func:`join`, the file where they meet, comes after them.

    Raises:
        ProcessFailed: One has ended with an error; the others have been ended, too.
    """
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

    # They share nothing with other machines, so they listen to none.
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
            last = str(error).strip().splitlines()[-1]
            raise ProcessFailed(f"process {error.error_index} of {processes}: {last}") from None


def _loopback() -> str:
    """Return the name of the network interface that reaches this machine only."""
    addresses = psutil.net_if_addrs().items()
    return next(name for name, each in addresses if any(address.address == "127.0.0.1" for address in each))


def _start(rank: int, processes: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Set what torch's own launcher would set, and call the function."""
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank)})
    os.environ.update({"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)})
    function(*arguments)


def join(config: Any, kind: str, meeting: Path | None = None) -> None:
    """Meet the other processes, and set an MMEngine config for training with them; only the first prints from now on.

    Args:
        config: Of a Runner; changed.
        kind: ``cpu`` or ``cuda``, on which each process gets the GPU of its own number.
        meeting: File through which processes of one machine find each other; None to do so through the address that
            torch's launcher has set.
    """
    import torch

    config.launcher = "pytorch"
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        # MMEngine's own choice would tie the model to a GPU.
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
