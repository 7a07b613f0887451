"""Undisturbed timing: alone on the device, and on a CPU core that nothing else uses."""

import contextlib
import os
from collections.abc import Collection, Iterator

from smnas_optuna.timing.device_lock import DeviceLock

# With fewer cores, training would lose more by one core less than timing would gain.
_LEAST_CORES = 4


class TimingTurn:
    """Serialises timing against other work on the device, and reserves a core of this machine for it.

    A fast GPU waits for the CPU, which launches several hundred kernels for an image. If the processes of other
    trainings loaded images on the same core, a detector would seem slower than it is; so trainings do not use one core.

    Args:
        device: Lock of the device.
        cores: Numbers of the cores that this process may run on; if there are fewer than four, none is reserved.
        purpose: What this process does, such as a trial's folder; shown by processes that wait for the core.
    """

    def __init__(self, device: DeviceLock, cores: Collection[int], purpose: str) -> None:
        self._device = device
        self._cores = set(cores)
        self._reserved = {max(cores)} if len(cores) >= _LEAST_CORES else set()
        self._core_locks = [DeviceLock(f"core-{core}", purpose) for core in self._reserved]

    def leave_core(self) -> None:
        """Run this thread, and the processes that it starts from now on, on the cores that are not reserved."""
        if self._reserved:
            os.sched_setaffinity(0, self._cores - self._reserved)

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Run this thread on the reserved core, and hold the device alone.

        Raises:
            EvaluationInterrupted: Another process does not release the core or the device.
        """
        with contextlib.ExitStack() as stack:
            for lock in self._core_locks:
                stack.enter_context(lock.exclusive())
                os.sched_setaffinity(0, self._reserved)
                stack.callback(self.leave_core)
            stack.enter_context(self._device.exclusive())
            yield
