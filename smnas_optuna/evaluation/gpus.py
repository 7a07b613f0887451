"""The CUDA GPUs that a process may use, by the names that they have in CUDA_VISIBLE_DEVICES.

A name, ``2``, ``GPU-8932f937-...`` or ``MIG-...``, means the same GPU in every process of a machine. An index into the
list that a process sees means another GPU wherever the list differs, so no process hands an index to another.
"""

from collections.abc import Sequence
from itertools import takewhile

VARIABLE = "CUDA_VISIBLE_DEVICES"


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
