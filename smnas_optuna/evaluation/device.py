"""The device that detectors are trained and timed on: which it is, and whose turn it is to have it for itself."""

import contextlib
import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from smnas_optuna.errors import UserError


def kind_of_device(*, amp: bool) -> str:
    """Return what torch trains on here, ``cuda`` or ``cpu``; raises UserError where mixed precision needs a GPU."""
    if torch.cuda.is_available():
        return "cuda"
    if amp:
        raise UserError("--amp: torch sees no CUDA GPU here, and needs one for mixed precision")
    return "cpu"


def device_name(kind: str) -> str:
    """Return the product's name, of a CPU with the number of threads in use."""
    return torch.cuda.get_device_name(0) if kind == "cuda" else _cpu_name()


def conditions(kind: str, *, amp: bool) -> dict[str, str]:
    """Return what may change a time on a device, by name."""
    found = {"torch": torch.__version__, "precision": "mixed" if amp and kind == "cuda" else "float32"}
    if kind == "cuda":
        found |= _nvidia_conditions()
    return found


def _nvidia_conditions() -> dict[str, str]:
    command = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        driver, limit = answer.splitlines()[0].split(", ")
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {}
    return {"driver": driver, "power limit": limit}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = "CPU"
    threads = torch.get_num_threads()
    return f"{name}, {threads} {'threads' if threads > 1 else 'thread'}"


class DeviceLock:
    """Parts timing from all other work of this package on one device of this machine.

    Training takes the device for an iteration at a time, together with other trainings; timing takes it alone. Whoever
    times waits at a gate first, through which every iteration has to go, so it is not starved.

    Args:
        name: Of the device: ``cpu``, or a GPU's unique identifier.
    """

    def __init__(self, name: str) -> None:
        folder = Path(tempfile.gettempdir()) / f"smnas_optuna-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        self._gate = os.open(folder / f"{name}.gate", os.O_RDWR | os.O_CREAT, 0o600)
        self._device = os.open(folder / f"{name}.device", os.O_RDWR | os.O_CREAT, 0o600)

    @classmethod
    def of(cls, kind: str) -> "DeviceLock":
        """Return the lock of this process's device."""
        return cls("cpu" if kind == "cpu" else str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Have the device for oneself, once the iterations under way have ended."""
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        fcntl.flock(self._device, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._device, fcntl.LOCK_UN)
            fcntl.flock(self._gate, fcntl.LOCK_UN)

    def join(self) -> None:
        """Take the device for an iteration, together with others that do."""
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        fcntl.flock(self._device, fcntl.LOCK_SH)
        fcntl.flock(self._gate, fcntl.LOCK_UN)

    def leave(self) -> None:
        """Give it back after the iteration."""
        fcntl.flock(self._device, fcntl.LOCK_UN)


class ShareDevice(Hook):  # type: ignore[misc]  # mmengine is untyped
    """Makes training and evaluation pause while another process times a detector on the same device."""

    def __init__(self, lock: DeviceLock) -> None:
        self._lock = lock

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Wait until nobody times."""
        self._lock.join()

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Let others have their turn."""
        self._lock.leave()

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Wait until nobody times."""
        self._lock.join()

    def after_test_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Let others have their turn."""
        self._lock.leave()
