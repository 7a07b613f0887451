"""Timing a detector undisturbed: alone on its device, and on a core of its own."""

import contextlib
import os
from collections.abc import Collection, Iterator

from smnas_optuna.timing.device_lock import DeviceLock

# With fewer, training would miss one more than timing needs it.
_LEAST_CORES = 4


class TimingTurn:
    """Serialises timing against other work on the device, and keeps a core of this machine for it.

    A fast GPU waits for the CPU, which launches several hundred kernels for an image. Beside other trainings, whose
    processes load images, a detector would seem slower than it is; so they do without one core.

    Args:
        device: Lock of the device.
        cores: Numbers of the cores that this process may run on. Of fewer than four none is kept.
        purpose: What this process does, such as a trial's folder; others read it that wait for the core.
    """

    def __init__(self, device: DeviceLock, cores: Collection[int], purpose: str) -> None:
        self._device = device
        self._cores = set(cores)
        self._kept = {max(cores)} if len(cores) >= _LEAST_CORES else set()
        self._core_locks = [DeviceLock(f"core-{core}", purpose) for core in self._kept]

    def leave_core(self) -> None:
        """Have this thread, and the processes that it starts from now on, run on the other cores."""
        if self._kept:
            os.sched_setaffinity(0, self._cores - self._kept)

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Run this thread on the core, and have the device alone.

        Raises:
            EvaluationInterrupted: Another process does not let go of one of them.
        """
        with contextlib.ExitStack() as stack:
            for lock in self._core_locks:
                stack.enter_context(lock.alone())
                os.sched_setaffinity(0, self._kept)
                stack.callback(self.leave_core)
            stack.enter_context(self._device.alone())
            yield
