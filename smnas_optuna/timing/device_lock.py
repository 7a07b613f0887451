"""Whose turn it is on a device: trainings share it, and whoever times a detector has it alone."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from smnas_optuna.errors import EvaluationInterrupted
from smnas_optuna.timing.owned_lock import OwnedLock, Owner, shared_folder

# In seconds: how often a lock that another has is tried, at first and later.
_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.05
# How often a wait is spoken of, and how long a process may do nothing for those that wait for it.
_WARNING_SECONDS = 60.0
_PATIENCE_SECONDS = 600.0
# How long another process may time one detector.
_LONGEST_TIMING_SECONDS = 3600.0


class _Wait:
    """A wait for other processes, which are named now and then."""

    def __init__(self, action: str) -> None:
        self._action = action
        self._pause = _FIRST_PAUSE
        self._owner: Owner | None = None
        self._since = self._warned = time.monotonic()

    def pause(self, owner: Owner | None) -> float:
        """Sleep a little, and return for how many seconds this owner has been waited for."""
        now = time.monotonic()
        if owner != self._owner:
            self._owner, self._since, self._warned, self._pause = owner, now, now, _FIRST_PAUSE
        if now - self._warned >= _WARNING_SECONDS:
            self._warned = now
            _warn(f"{self._action} has waited {now - self._since:.0f} s for {owner or 'an unknown process'}")
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return now - self._since


class DeviceLock:
    """Serialises timing against other work of this package on one device of this machine.

    Training takes the device for an iteration at a time, together with other trainings; timing takes it alone. Whoever
    times holds a gate through which every iteration has to go, so that it is not starved, and waits until the
    iterations under way have ended.

    A time that was taken beside a training is worth nothing, so timing waits for a process that is slow, and says in
    the log for which. It gives up on one that does not finish its iteration within ten minutes: the trial then counts
    as interrupted, and another resumes it from its last checkpoint. A process that is stopped, as by SIGSTOP, computes
    nothing, so timing goes ahead beside it. Nobody takes the turn of a process that was stopped while it timed, since
    it would not know of it when it goes on: others give up on it after ten minutes too, and after an hour on one that
    hangs while it times.

    Args:
        name: Of the device: ``cpu``, or a GPU's unique identifier.
        purpose: What this process uses the device for, such as a trial's folder; others read it that wait for it.
    """

    def __init__(self, name: str, purpose: str) -> None:
        self._users = shared_folder(f"{name}.users")
        self._me = Owner(os.getpid(), purpose)
        self._gate = OwnedLock(shared_folder() / f"{name}.gate")
        # Each has a file of its own: so whoever times knows whom it waits for.
        self._use = OwnedLock.unique(self._users, self._me)

    @classmethod
    def of(cls, kind: str, purpose: str) -> "DeviceLock":
        """Return the lock of this process's device, ``cpu`` or ``cuda``."""
        if kind == "cpu":
            return cls(kind, purpose)
        return cls(str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid), purpose)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Have the device for oneself, once the iterations under way have ended.

        Raises:
            EvaluationInterrupted: Another process does not let go of it.
        """
        self._enter_gate("timing")
        try:
            for path in self._users.iterdir():
                self._wait_for(path)
            yield
        finally:
            self._gate.release()

    def join(self) -> None:
        """Take the device for an iteration, together with others that do.

        Raises:
            EvaluationInterrupted: A process that was stopped while it timed does not let go of it.
        """
        self._enter_gate("training")
        try:
            # Only who has the gate tries another's file, so it is free.
            is_free = self._use.try_acquire()
            assert is_free
        finally:
            self._gate.release()

    def leave(self) -> None:
        """Give it back after the iteration."""
        self._use.release()

    def _enter_gate(self, action: str) -> None:
        wait = _Wait(action)
        while not self._gate.try_acquire():
            owner = self._gate.owner
            # While it runs, its measurement may take long: the recipe says how many images and rounds.
            waited = wait.pause(owner)
            is_stopped = owner is not None and owner.is_stopped
            if waited > _LONGEST_TIMING_SECONDS or (waited > _PATIENCE_SECONDS and is_stopped):
                raise EvaluationInterrupted(f"{action} cannot go on before {owner} does, or is killed")
        self._gate.owner = self._me

    def _wait_for(self, path: Path) -> None:
        """Wait for the end of another process's iteration, and remove what is left of a process that has ended."""
        use = OwnedLock(path)
        wait = _Wait("timing")
        try:
            while not use.try_acquire():
                owner = use.owner
                if owner is not None and owner.is_stopped:
                    _warn(f"timing goes ahead within an iteration of {owner}")
                    return
                if wait.pause(owner) > _PATIENCE_SECONDS:
                    raise EvaluationInterrupted(f"timing has waited too long for an iteration of {owner} to end")
            use.discard_if_abandoned()
        finally:
            use.close()


def _warn(text: str) -> None:
    print_log(text, logger="current", level=logging.WARNING)


class ShareDevice(Hook):  # type: ignore[misc]  # mmengine is untyped
    """Makes training and evaluation pause while another process times a detector on the same device.

    Args:
        lock: Of this process's device.
        kind: ``cpu`` or ``cuda``. On the CPU the first process of a training takes the lock for all of them: one that
            waited for its turn would be waited for by those that have had theirs. GPUs have a lock each.
    """

    def __init__(self, lock: DeviceLock, kind: str) -> None:
        self._lock = lock
        self._takes_lock = kind != "cpu" or is_main_process()
        self._is_joint = kind == "cpu" and get_world_size() > 1

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Wait until nobody times."""
        self._join()

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Let others have their turn."""
        self._leave()

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Wait until nobody times."""
        self._join()

    def after_test_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Let others have their turn."""
        self._leave()

    def _join(self) -> None:
        if self._takes_lock:
            self._lock.join()
        if self._is_joint:
            barrier()

    def _leave(self) -> None:
        if self._is_joint:
            barrier()
        if self._takes_lock:
            self._lock.leave()
