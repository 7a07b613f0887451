"""ProcessIdentity: identifies a worker's process uniquely across machines, containers and time."""

import functools
import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_UNKNOWN = "?"
# States of a process that has ended but was not yet reaped by its parent; see proc(5).
_ENDED_STATES = ("Z", "X")
# Indices of fields of /proc/<pid>/stat, counted from the first field after the program's name in parentheses.
_STATE, _START_TICKS = 0, 19


@dataclass(frozen=True)
class ProcessIdentity:
    """Identifies one process uniquely.

    A process number alone is reused over time, and two containers may have the same host name and process numbers.
    Therefore the boot, the PID namespace and the start time belong to the identity. The kernel counts the start time in
    clock ticks since boot, so setting the system clock does not change it.

    Args:
        host: Name of the machine, for people to read.
        pid: Process number.
        start: Start time of the process in clock ticks since boot; ``?`` if unknown.
        boot: Id of this boot of the machine; ``?`` if unknown.
        namespace: Id of the PID namespace; ``?`` if unknown.
        token: Random text, different for each process.
    """

    host: str
    pid: int
    start: str
    boot: str
    namespace: str
    token: str

    def __str__(self) -> str:
        return ":".join((self.host, str(self.pid), self.start, self.boot, self.namespace, self.token))

    @classmethod
    def current(cls) -> "ProcessIdentity":
        """Return the identity of this process."""
        return _identity_of_process(os.getpid())

    @classmethod
    def parse(cls, text: str) -> "ProcessIdentity | None":
        """Parse the text that ``str`` returns; None for any other text, such as the shorter form of former versions."""
        parts = text.split(":")
        if len(parts) != 6 or not parts[1].isdecimal():
            return None
        host, pid, *others = parts
        return cls(host, int(pid), *others)

    def is_alive(self) -> bool | None:
        """Return whether the process is running; None if unknown, as for one of another machine or container."""
        here = ProcessIdentity.current()
        is_local = (self.boot, self.namespace) == (here.boot, here.namespace)
        if not is_local or _UNKNOWN in (self.boot, self.namespace, self.start):
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it runs, as another user
        stat = _stat(self.pid)
        if stat is None:
            return None  # hidden from this user, or ended since os.kill
        return stat[_START_TICKS] == self.start and stat[_STATE] not in _ENDED_STATES


@functools.lru_cache(maxsize=1)
def _identity_of_process(pid: int) -> ProcessIdentity:
    # Cached by number, since a forked process inherits the cache.
    stat = _stat(pid)
    return ProcessIdentity(
        # The colon separates fields.
        socket.gethostname().replace(":", "-"),
        pid,
        stat[_START_TICKS] if stat else _UNKNOWN,
        _read(_PROC / "sys/kernel/random/boot_id"),
        _namespace(),
        secrets.token_hex(4),
    )


def _stat(pid: int) -> list[str] | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return _UNKNOWN


def _namespace() -> str:
    try:
        # The link's target is a text such as pid:[4026531836].
        return "".join(filter(str.isdecimal, os.readlink(_PROC / "self/ns/pid"))) or _UNKNOWN
    except OSError:
        return _UNKNOWN
