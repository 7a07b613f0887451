"""ProcessIdentity: identifies a worker's process, unique across machines, containers and time."""

import functools
import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_UNKNOWN = "?"
# Of a process that has ended and whose parent has not noticed yet; see proc(5).
_ENDED_STATES = ("Z", "X")
# Fields of /proc/<pid>/stat, counted from the state, which follows the name of the program in parentheses.
_STATE, _START_TICKS = 0, 19


@dataclass(frozen=True)
class ProcessIdentity:
    """Names one process for ever.

    The time of a start is counted by the kernel in clock ticks since boot, so it does not move when the system clock is
    set. The boot and the namespace of process numbers say where a process number means anything: two containers may
    have the same host name and process numbers.

    Args:
        host: Name of the machine, for people.
        pid: Process number.
        start: Clock ticks from boot to the start of the process.
        boot: Identifier of this boot of the machine.
        namespace: Identifier of the namespace of process numbers.
        token: Random text of this process alone.
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
        """Read what ``str`` has written; None for anything else, such as the shorter form of earlier versions."""
        parts = text.split(":")
        if len(parts) != 6 or not parts[1].isdecimal():
            return None
        host, pid, *others = parts
        return cls(host, int(pid), *others)

    def is_alive(self) -> bool | None:
        """Ask the operating system; None where it cannot tell, as for a process of another machine or container."""
        here = ProcessIdentity.current()
        is_local = (self.boot, self.namespace) == (here.boot, here.namespace)
        if not is_local or _UNKNOWN in (self.boot, self.namespace, self.start):
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # a process of another user
        found = _stat(self.pid)
        if found is None:
            return None  # hidden, or it has ended at this very moment
        return found[_START_TICKS] == self.start and found[_STATE] not in _ENDED_STATES


@functools.lru_cache(maxsize=1)
def _identity_of_process(pid: int) -> ProcessIdentity:
    # By number, since a forked process inherits the cache.
    found = _stat(pid)
    return ProcessIdentity(
        # A colon parts the fields.
        socket.gethostname().replace(":", "-"),
        pid,
        found[_START_TICKS] if found else _UNKNOWN,
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
        # Such as pid:[4026531836].
        return "".join(filter(str.isdecimal, os.readlink(_PROC / "self/ns/pid"))) or _UNKNOWN
    except OSError:
        return _UNKNOWN
