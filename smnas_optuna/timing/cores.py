"""The CPU cores of this machine."""

import os


def usable_cores() -> set[int]:
    """Return the numbers of the CPU cores that this process may run on; all cores if the system sets no limits."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
