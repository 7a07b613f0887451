"""A file lock that names its owner; the lock ends when the owner's process ends."""

import fcntl
import math
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

# Seconds between two attempts to take a lock.
_PAUSE = 0.01

_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


@dataclass(frozen=True)
class Owner:
    """A process that has taken a lock.

    Args:
        pid: ID of the process.
        purpose: What the process does, such as the folder of the trial that it trains.
    """

    pid: int
    purpose: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.purpose}{', stopped' if self.is_stopped else ''})"

    @property
    def is_stopped(self) -> bool:
        """Whether the process is suspended, such as by SIGSTOP."""
        try:
            return psutil.Process(self.pid).status() in _STOPPED
        except psutil.Error:
            return False


class OwnedLock:
    """An exclusive lock on a file.

    Args:
        path: Path of the file.
        create: Create the file if it does not exist.

    Raises:
        FileNotFoundError: The file does not exist, and ``create`` is False.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)

    @classmethod
    def unique(cls, folder: Path, owner: Owner) -> "OwnedLock":
        """Create a lock with a new file in a folder, whose name is unique."""
        file, path = tempfile.mkstemp(dir=folder, prefix=f"{owner.pid}.")
        os.close(file)
        lock = cls(Path(path))
        lock.owner = owner
        return lock

    def try_acquire(self) -> bool:
        """Take the lock if it is free, and return whether it was."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def acquire(self, patience: float = math.inf) -> bool:
        """Wait for the lock for at most ``patience`` seconds, and return whether it was taken."""
        deadline = time.monotonic() + patience
        while not (is_taken := self.try_acquire()) and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        return is_taken

    def release(self) -> None:
        """Release the lock."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file, which also releases the lock."""
        os.close(self._file)

    def discard_if_abandoned(self) -> None:
        """Remove the file if its owner has ended; call it with the lock held."""
        owner = self.owner
        if owner is not None and not psutil.pid_exists(owner.pid):
            # Another process may have removed it already.
            self.path.unlink(missing_ok=True)

    @property
    def owner(self) -> Owner | None:
        """The process that was last set as the owner; None if none was."""
        pid, _, purpose = os.pread(self._file, 4096, 0).decode(errors="replace").partition("\n")
        return Owner(int(pid), purpose) if pid.isdigit() else None

    @owner.setter
    def owner(self, owner: Owner) -> None:
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{owner.pid}\n{owner.purpose}".encode(), 0)


def shared_folder(*parts: str) -> Path:
    """Return a folder, created if absent, that all processes of this user on this machine share."""
    folder = Path(tempfile.gettempdir()) / f"smnas_optuna-{os.getuid()}"
    for each in (folder, *(folder.joinpath(*parts[: count + 1]) for count in range(len(parts)))):
        each.mkdir(mode=0o700, exist_ok=True)
    return folder.joinpath(*parts)
