"""What goes wrong in a cluster, made to go wrong."""

import contextlib
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import psutil

from tests.servers import PostgreSQL

_EVERY = 0.5
# Trials that have to finish between two kills, or where the machine is slow the workers would only ever start.
_TRIALS_BETWEEN_KILLS = 5


def living_children(is_wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """The descendants of this process that are wanted; those that end meanwhile are left out."""
    found = []
    for process in psutil.Process().children(recursive=True):
        # A zombie has no command line any more, and one that is gone has nothing.
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if is_wanted(process):
                found.append(process)
    return found


class Wrecker:
    """While it is entered, kills a worker whenever some trials have finished, and restarts the server now and then.

    Args:
        workers: Finds the processes of those that live.
        finished: Tells how many trials have finished.
        server: Of the database.
        away: For each restart, the seconds that the server is away.
        kills_before_restart: Workers that are killed before each restart.
    """

    def __init__(
        self,
        workers: Callable[[], Sequence[psutil.Process]],
        finished: Callable[[], int],
        server: PostgreSQL,
        away: Sequence[float],
        kills_before_restart: int = 4,
    ) -> None:
        self.kills = 0
        self.restarts = 0
        self._workers = workers
        self._finished = finished
        self._server = server
        self._away = away
        self._kills_before_restart = kills_before_restart
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> "Wrecker":
        self._work = self._pool.submit(self._wreck)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._pool.shutdown()
        # Without it an error of the wrecker would be a warning only, and the test a search that nothing disturbed.
        self._work.result()

    def _wreck(self) -> None:
        choice = random.Random(0)
        seen = 0
        while not self._over.wait(_EVERY):
            if self.restarts < len(self._away) and self.kills >= self._kills_before_restart * (self.restarts + 1):
                self._server.restart(self._away[self.restarts])
                self.restarts += 1
            elif self._finished() >= seen + _TRIALS_BETWEEN_KILLS and (alive := self._workers()):
                seen = self._finished()
                with contextlib.suppress(psutil.NoSuchProcess):
                    choice.choice(alive).kill()
                self.kills += 1
