"""The CUDA GPUs that a process may use, by the names that they have in CUDA_VISIBLE_DEVICES.

A name, such as ``2``, ``GPU-8932f937-...`` or ``MIG-...``, means the same GPU in every process of a machine. An index
into the list of GPUs that a process sees does not, so processes pass names to each other.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

from smnas_optuna.timing.owned_lock import OwnedLock, Owner, shared_folder

VARIABLE = "CUDA_VISIBLE_DEVICES"

# How long to wait, in seconds, for another process that chooses its GPUs.
_LONGEST_CHOICE = 60.0

# Environment variable that keeps the value of CUDA_VISIBLE_DEVICES, after "=", while GPUs are hidden; empty if that was
# not set.
_HIDDEN = "SMNAS_HIDDEN_CUDA_DEVICES"


def make_visible(listed: str | None) -> None:
    """Set CUDA_VISIBLE_DEVICES of this process, or unset it if None; call it before CUDA is first used."""
    os.environ.pop(VARIABLE, None)
    if listed is not None:
        os.environ[VARIABLE] = listed


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Hide all GPUs from this process, and from processes started meanwhile until they call :func:`show_again`."""
    visible = os.environ.get(VARIABLE)
    os.environ[_HIDDEN] = "" if visible is None else f"={visible}"
    make_visible("")
    try:
        yield
    finally:
        show_again()


def show_again() -> None:
    """Make the GPUs visible again that were visible before :func:`hidden`; does nothing if none were hidden."""
    visible = os.environ.pop(_HIDDEN, None)
    if visible is not None:
        make_visible(visible[1:] if visible else None)


def gpu_names(listed: str | None, count: int) -> tuple[str, ...]:
    """Return the names of the GPUs that CUDA finds.

    Args:
        listed: Value of CUDA_VISIBLE_DEVICES, or None if it is not set.
        count: Number of GPUs that CUDA finds with it. They are the first ones listed, since CUDA ignores everything
            from an invalid entry on; it finds none if a GPU is listed twice.
    """
    if listed is None:
        return tuple(map(str, range(count)))
    names = tuple(name.strip() for name in listed.split(","))
    if count and listed.startswith("MIG-"):
        # CUDA lets a process use only the first MIG instance of the list; other processes can use the others.
        return tuple(takewhile(lambda name: name.startswith("MIG-"), names))
    return names[:count]


def assign_gpus(names: Sequence[str], each: int, workers: int | None) -> list[tuple[str, ...] | None]:
    """Return the names of each worker's GPUs; None for every worker if there are too few GPUs for one.

    Args:
        names: Names of all GPUs.
        each: Number of GPUs per worker. If there are too few for all workers, several workers share GPUs.
        workers: Number of workers; None for as many as can have GPUs that they do not share.
    """
    groups = len(names) // each
    if groups == 0:
        return [None] * (workers or 1)
    firsts = [worker % groups * each for worker in range(workers or groups)]
    return [tuple(names[first : first + each]) for first in firsts]


@contextlib.contextmanager
def choosing() -> Iterator[None]:
    """Serialise the choice of GPUs and its announcement, so that searches that start together choose different GPUs.

    After a minute of waiting for another process, it continues without the lock.
    """
    lock = OwnedLock(shared_folder() / "gpus.choice")
    try:
        lock.acquire(_LONGEST_CHOICE)
        yield
    finally:
        lock.close()


def announce_search(uuid: str, purpose: str) -> None:
    """Let other searches on this machine know that this process trains on a GPU until it ends.

    Args:
        uuid: Unique identifier of the GPU.
        purpose: What the process trains, such as the search's folder.
    """
    lock = OwnedLock.unique(_searches_folder(uuid), Owner(os.getpid(), purpose))
    # Waits, since another process may be checking the new file at this moment.
    lock.acquire()


def announced_searches(uuid: str) -> list[Owner]:
    """Return the processes that have announced that they train on a GPU and have not ended."""
    searches = []
    for path in _searches_folder(uuid).iterdir():
        try:
            lock = OwnedLock(path, create=False)
        except FileNotFoundError:
            continue  # another process has discarded it
        if lock.try_acquire():
            lock.discard_if_abandoned()
        elif (owner := lock.owner) is not None:
            searches.append(owner)
        lock.close()
    return searches


def _searches_folder(uuid: str) -> Path:
    return shared_folder(f"{uuid}.searches")
