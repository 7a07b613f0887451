"""Workers on this machine: one in this process, or several, each a process that is supervised and restarted."""

import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from smnas_optuna.execution.interruption import Interruption
from smnas_optuna.execution.restarts import Restarts
from smnas_optuna.execution.worker import Assignment, Ended, Finished, Message, conclude, work
from smnas_optuna.training.server import context, follow_parent, sharing

# How long a worker may take to end its trial cleanly, in seconds.
_ENDING_SECONDS = 30.0
_SIGNAL_EVERY = 1.0


@dataclass
class _Place:
    """A worker's place: its process with the connection, or none before it starts and after it has ended."""

    assignment: Assignment
    restarts: Restarts = field(init=False)
    process: BaseProcess | None = None
    connection: Connection | None = None
    ended: Ended | None = None

    def __post_init__(self) -> None:
        self.restarts = Restarts(self.assignment.worker)

    @property
    def is_over(self) -> bool:
        return self.restarts.are_over or (self.process is None and self.ended is not None)


def work_here(
    assignments: Sequence[Assignment],
    hear: Callable[[Message], None],
    say: Callable[[str], None],
    interruption: Interruption,
) -> None:
    """Run a single worker in this process, which spares a process its imports; see ``supervise``.

    A worker that an unexpected error ends starts again, as its process would.
    """
    (assignment,) = assignments
    restarts = Restarts(assignment.worker)

    def send(message: Message) -> None:
        if isinstance(message, Finished):
            restarts.finished_trial()
        hear(message)

    while True:
        ended = work(assignment, send, interruption)
        interruption.check()
        if not ended.error:
            return conclude([ended])
        say(restarts.died(ended.error))
        if restarts.are_over:
            return conclude([None])
        wait([interruption.fileno()], timeout=restarts.due - time.monotonic())
        interruption.check()


def supervise(
    assignments: Sequence[Assignment],
    hear: Callable[[Message], None],
    say: Callable[[str], None],
    interruption: Interruption | None = None,
) -> None:
    """Run a worker process for each assignment, and return when each has nothing more to do.

    Args:
        assignments: What the workers are to run.
        hear: Called with their messages.
        say: Called with a line about a worker that has died.
        interruption: Ends the workers cleanly.

    Raises:
        UserError: A worker has found a mistake of the user's; the others are ended.
        SearchStopped: A search could not reach its number of trials, or no worker is left to go on with it.
        KeyboardInterrupt: The workers have ended, and what they evaluated will be repeated.
    """
    places = [_Place(assignment) for assignment in assignments]
    interruption = interruption or Interruption()
    try:
        while any(not place.is_over for place in places):
            _step(places, hear, say, interruption)
    finally:
        _end(places)
    conclude([place.ended for place in places])


def _step(
    places: Sequence[_Place],
    hear: Callable[[Message], None],
    say: Callable[[str], None],
    interruption: Interruption,
) -> None:
    """Start what is due, then wait for a message, a death, the next start or an interruption."""
    waiting = [place for place in places if place.process is None and not place.is_over]
    now = time.monotonic()
    for place in waiting:
        if place.restarts.due <= now:
            _start(place)
    connections = {place.connection: place for place in places if place.connection is not None}
    pauses = [place.restarts.due - now for place in waiting if place.process is None]
    ready = wait([*connections, interruption.fileno()], timeout=min(pauses, default=None))
    interruption.check()
    for connection in ready:
        assert isinstance(connection, Connection)
        place = connections[connection]
        try:
            message = connection.recv()
        except (EOFError, OSError):
            _handle_exit(place, say)
            continue
        if isinstance(message, Ended):
            place.ended = message
            if message.mistake:
                conclude([message])
        else:
            if isinstance(message, Finished):
                place.restarts.finished_trial()
            hear(message)


def _start(place: _Place) -> None:
    receiver, sender = context.Pipe(duplex=False)
    place.process = sharing(_enter, place.assignment, sender, name=f"worker {place.assignment.worker}")
    place.process.start()
    sender.close()
    place.connection = receiver


def _handle_exit(place: _Place, say: Callable[[str], None]) -> None:
    """Note that a worker's process has ended, and schedule another one if it died."""
    assert place.process is not None
    assert place.connection is not None
    place.process.join()
    code, place.process = place.process.exitcode, None
    place.connection.close()
    place.connection = None
    if place.ended is None or place.ended.error:
        say(place.restarts.died(place.ended.error if place.ended and place.ended.error else _how(code)))
        place.ended = None


def _end(places: Sequence[_Place]) -> None:
    """End the workers that are left: cleanly, and by force those that do not."""
    for place in places:
        if place.connection is not None:
            # Else its last message could wait to be received.
            place.connection.close()
    processes = [place.process for place in places if place.process is not None]
    deadline = time.monotonic() + _ENDING_SECONDS
    while processes and time.monotonic() < deadline:
        # Again and again, since a worker that has just been started does not listen yet.
        for process in processes:
            process.terminate()
        wait([process.sentinel for process in processes], timeout=_SIGNAL_EVERY)
        processes = [process for process in processes if process.is_alive()]
    for process in processes:
        process.kill()
        process.join()


def _enter(assignment: Assignment, connection: Connection) -> None:
    """Run a worker in its process, which has just been started."""
    follow_parent()
    interruption = Interruption()

    def send(message: Message) -> None:
        # Nobody receives any more from a worker that is being ended.
        with contextlib.suppress(OSError):
            connection.send(message)

    # The signal may come while a worker sends how it has ended.
    with contextlib.suppress(KeyboardInterrupt), interruption.listen(signal.SIGTERM):
        ended = work(assignment, send, interruption)
        with interruption.deferred():
            send(ended)


def _how(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
