"""The CUDA GPUs that a process may use, by the names that they have in CUDA_VISIBLE_DEVICES.

A name, ``2``, ``GPU-8932f937-...`` or ``MIG-...``, means the same GPU in every process of a machine. An index into the
list that a process sees means another GPU wherever the list differs, so no process hands an index to another.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

from smnas_optuna.timing.owned_lock import OwnedLock, Owner, shared_folder

VARIABLE = "CUDA_VISIBLE_DEVICES"

# Seconds.
_LONGEST_CHOICE = 60.0

# Holds the variable's former value while GPUs are hidden, after "="; empty if it was not set.
_HIDDEN = "SMNAS_HIDDEN_CUDA_DEVICES"


def make_visible(listed: str | None) -> None:
    """Set CUDA_VISIBLE_DEVICES of this process, or unset it if None; CUDA reads it when it is first used."""
    os.environ.pop(VARIABLE, None)
    if listed is not None:
        os.environ[VARIABLE] = listed


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Hide all GPUs from this process and from those that it starts meanwhile, until they call :func:`show_again`."""
    visible = os.environ.get(VARIABLE)
    os.environ[_HIDDEN] = "" if visible is None else f"={visible}"
    make_visible("")
    try:
        yield
    finally:
        show_again()


def show_again() -> None:
    """Show those GPUs that were visible before they were hidden; nothing if they were not."""
    visible = os.environ.pop(_HIDDEN, None)
    if visible is not None:
        make_visible(visible[1:] if visible else None)


def gpu_names(listed: str | None, count: int) -> tuple[str, ...]:
    """Return the names of the GPUs that CUDA finds.

    Args:
        listed: Value of CUDA_VISIBLE_DEVICES, or None where it is not set.
        count: How many GPUs CUDA finds with it. They are the first in the list, since an entry that CUDA does not
            accept ends it; there are none if one is listed twice.
    """
    if listed is None:
        return tuple(map(str, range(count)))
    names = tuple(name.strip() for name in listed.split(","))
    if count and listed.startswith("MIG-"):
        # CUDA gives a process the first of them only, and other processes the others.
        return tuple(takewhile(lambda name: name.startswith("MIG-"), names))
    return names[:count]


def assign_gpus(names: Sequence[str], each: int, workers: int | None) -> list[tuple[str, ...] | None]:
    """Return the GPUs of each worker; all None where there are not enough for one.

    Args:
        names: Of the GPUs that there are.
        each: GPUs per worker. Workers share them where there are more workers than GPUs for them.
        workers: How many; None for as many as have GPUs of their own.
    """
    places = len(names) // each
    if places == 0:
        return [None] * (workers or 1)
    firsts = [worker % places * each for worker in range(workers or places)]
    return [tuple(names[first : first + each]) for first in firsts]


@contextlib.contextmanager
def choosing() -> Iterator[None]:
    """Serialises the choice of GPUs, up to its announcement: searches that start together choose different ones.

    A process that takes longer than a minute for its choice is not waited for.
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
        purpose: What for, such as the search's folder.
    """
    lock = OwnedLock.unique(_searches_folder(uuid), Owner(os.getpid(), purpose))
    # Another process may be looking at the new file at this moment.
    lock.acquire()


def announced_searches(uuid: str) -> list[Owner]:
    """Return the processes that have announced that they train on a GPU and have not ended."""
    found = []
    for path in _searches_folder(uuid).iterdir():
        try:
            lock = OwnedLock(path, create=False)
        except FileNotFoundError:
            continue  # another process has discarded it
        if lock.try_acquire():
            lock.discard_if_abandoned()
        elif (owner := lock.owner) is not None:
            found.append(owner)
        lock.close()
    return found


def _searches_folder(uuid: str) -> Path:
    return shared_folder(f"{uuid}.searches")
