"""A lock of a device that trainings share and that timing holds alone."""

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

# Seconds between two attempts to take a lock, at first and later.
_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.05
# Seconds between two warnings about a wait.
_WARNING_SECONDS = 60.0
# How long to wait, in seconds, for the end of another process's iteration, or for a stopped process that was timing.
_PATIENCE_SECONDS = 600.0
# How long to wait, in seconds, for a running process that times a detector.
_LONGEST_TIMING_SECONDS = 3600.0


class _Wait:
    """A wait for other processes, which logs a warning with their names every minute."""

    def __init__(self, action: str) -> None:
        self._action = action
        self._pause = _FIRST_PAUSE
        self._owner: Owner | None = None
        self._since = self._warned = time.monotonic()

    def pause(self, owner: Owner | None) -> float:
        """Sleep a little, and return how many seconds the wait for this owner has lasted."""
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

    A training takes the lock for an iteration at a time, together with other trainings; timing takes it alone. A
    process that times holds a gate that every iteration has to pass, so that timing is not starved, and waits until the
    running iterations have ended.

    A time that is measured beside a training is useless, so timing waits for slow processes, and logs for which ones.
    After ten minutes in one iteration it gives up: the trial is interrupted, and is later resumed from its last
    checkpoint. A process that is stopped, such as by SIGSTOP, computes nothing, so timing does not wait for it. If a
    process is stopped while it times, the others wait, since it would not notice another process's work when it
    continues; they give up after ten minutes. They give up after an hour on a process that hangs while it times.

    Args:
        name: Name of the device: ``cpu``, or a GPU's unique identifier.
        purpose: What this process uses the device for, such as a trial's folder; shown by processes that wait for it.
    """

    def __init__(self, name: str, purpose: str) -> None:
        self._users = shared_folder(f"{name}.users")
        self._me = Owner(os.getpid(), purpose)
        self._gate = OwnedLock(shared_folder() / f"{name}.gate")
        # Each process has its own file, so that timing knows which processes it waits for.
        self._use = OwnedLock.unique(self._users, self._me)

    @classmethod
    def of(cls, kind: str, purpose: str) -> "DeviceLock":
        """Return the lock of this process's device.

        Args:
            kind: ``cpu`` or ``cuda``, the current CUDA device.
            purpose: What this process uses the device for.
        """
        if kind == "cpu":
            return cls(kind, purpose)
        return cls(str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid), purpose)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the device alone, as soon as the running iterations have ended.

        Raises:
            EvaluationInterrupted: Another process does not release the device.
        """
        self._enter_gate("timing")
        try:
            for path in self._users.iterdir():
                self._wait_for(path)
            yield
        finally:
            self._gate.release()

    def acquire_shared(self) -> None:
        """Take the device for an iteration, together with other trainings; :meth:`release_shared` releases it.

        Raises:
            EvaluationInterrupted: A process that is stopped or hangs while it times does not release the device.
        """
        self._enter_gate("training")
        try:
            # Other processes lock this file only while they hold the gate, so it is free.
            is_free = self._use.try_acquire()
            assert is_free
        finally:
            self._gate.release()

    def release_shared(self) -> None:
        """Release the device after the iteration."""
        self._use.release()

    def _enter_gate(self, action: str) -> None:
        wait = _Wait(action)
        while not self._gate.try_acquire():
            owner = self._gate.owner
            # A measurement may take long, depending on the recipe, so a running owner gets more time.
            waited = wait.pause(owner)
            is_stopped = owner is not None and owner.is_stopped
            if waited > _LONGEST_TIMING_SECONDS or (waited > _PATIENCE_SECONDS and is_stopped):
                raise EvaluationInterrupted(f"{action} cannot continue until {owner} continues or is killed")
        self._gate.owner = self._me

    def _wait_for(self, path: Path) -> None:
        """Wait for the end of another process's iteration, and remove the file of a process that has ended."""
        use = OwnedLock(path)
        wait = _Wait("timing")
        try:
            while not use.try_acquire():
                owner = use.owner
                if owner is not None and owner.is_stopped:
                    _warn(f"timing starts during an iteration of {owner}")
                    return
                if wait.pause(owner) > _PATIENCE_SECONDS:
                    raise EvaluationInterrupted(f"timing has waited too long for an iteration of {owner} to end")
            use.discard_if_abandoned()
        finally:
            use.close()


def _warn(message: str) -> None:
    print_log(message, logger="current", level=logging.WARNING)


class ShareDevice(Hook):  # type: ignore[misc]  # mmengine is untyped
    """Makes training and evaluation pause while another process times a detector on the same device.

    Args:
        lock: Lock of this process's device.
        kind: ``cpu`` or ``cuda``. On the CPU the first process of a distributed training takes the lock for all: if
            each took it, those that have it would wait in the iteration for those that do not. Each GPU has its own
            lock.
    """

    def __init__(self, lock: DeviceLock, kind: str) -> None:
        self._lock = lock
        self._takes_lock = kind != "cpu" or is_main_process()
        self._is_joint = kind == "cpu" and get_world_size() > 1

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Wait until no process times, and take the device."""
        self._join()

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Release the device."""
        self._leave()

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Wait until no process times, and take the device."""
        self._join()

    def after_test_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Release the device."""
        self._leave()

    def _join(self) -> None:
        if self._takes_lock:
            self._lock.acquire_shared()
        if self._is_joint:
            barrier()

    def _leave(self) -> None:
        if self._is_joint:
            barrier()
        if self._takes_lock:
            self._lock.release_shared()
