"""A lock on a file in which its owner is written; it ends with the owner's process."""

import fcntl
import math
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

# Seconds between two looks at a lock that is waited for.
_PAUSE = 0.01

_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


@dataclass(frozen=True)
class Owner:
    """A process that has taken a lock.

    Args:
        pid: Its number.
        purpose: What it does, such as the folder of the trial that it trains.
    """

    pid: int
    purpose: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.purpose}{', stopped' if self.is_stopped else ''})"

    @property
    def is_stopped(self) -> bool:
        """Whether the process is suspended, as by SIGSTOP."""
        try:
            return psutil.Process(self.pid).status() in _STOPPED
        except psutil.Error:
            return False


class OwnedLock:
    """An exclusive lock on a file.

    Args:
        path: The file.
        create: Make the file if it is absent; otherwise FileNotFoundError is raised.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)

    @classmethod
    def unique(cls, folder: Path, owner: Owner) -> "OwnedLock":
        """Make a lock on a file of its own in a folder, whose name no other lock has or will have."""
        file, path = tempfile.mkstemp(dir=folder, prefix=f"{owner.pid}.")
        os.close(file)
        lock = cls(Path(path))
        lock.owner = owner
        return lock

    def try_acquire(self) -> bool:
        """Take the lock if nobody has it, and tell whether this one has it now."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def acquire(self, patience: float = math.inf) -> bool:
        """Wait for the lock, at most so many seconds, and tell whether this one has it now."""
        deadline = time.monotonic() + patience
        while not (is_taken := self.try_acquire()) and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        return is_taken

    def release(self) -> None:
        """Give the lock back."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file, which gives the lock back too."""
        os.close(self._file)

    def discard_if_abandoned(self) -> None:
        """Remove the file of a process that has ended; call it with the lock held."""
        owner = self.owner
        if owner is not None and not psutil.pid_exists(owner.pid):
            # Another process may have been faster.
            self.path.unlink(missing_ok=True)

    @property
    def owner(self) -> Owner | None:
        """Who has written itself into the file last; None if nobody has."""
        pid, _, purpose = os.pread(self._file, 4096, 0).decode(errors="replace").partition("\n")
        return Owner(int(pid), purpose) if pid.isdigit() else None

    @owner.setter
    def owner(self, owner: Owner) -> None:
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{owner.pid}\n{owner.purpose}".encode(), 0)


def shared_folder(*parts: str) -> Path:
    """Return a folder that all processes of this user on this machine find; made if absent."""
    folder = Path(tempfile.gettempdir()) / f"smnas_optuna-{os.getuid()}"
    for each in (folder, *(folder.joinpath(*parts[: count + 1]) for count in range(len(parts)))):
        each.mkdir(mode=0o700, exist_ok=True)
    return folder.joinpath(*parts)
