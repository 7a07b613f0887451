"""Interruption: the wish that a worker end, which a trial that is under way takes in at a point of its own choice."""

import contextlib
import os
import signal
from collections.abc import Iterator


class Interruption:
    """Turns signals into a KeyboardInterrupt, at once or, within :meth:`deferred`, only where it is asked for.

    Optuna cannot be interrupted while it begins or ends a trial: the trial would be left running. And an exception
    that a signal raises in a finalizer is lost. It has a ``fileno()`` that becomes readable with the first signal, for
    :func:`multiprocessing.connection.wait`.
    """

    def __init__(self) -> None:
        self._is_wanted = False
        self._is_deferred = False
        self._reader, self._writer = os.pipe()

    def listen(self, *signals: signal.Signals) -> None:
        """Take signals in from now on."""
        for number in signals:
            signal.signal(number, self._take_in)

    def fileno(self) -> int:
        """Return a file descriptor that becomes readable when the worker has to end."""
        return self._reader

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was a signal."""
        if self._is_wanted:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let signals raise nothing within, and at its end if there was one."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        self.check()

    def _take_in(self, *_: object) -> None:
        # Later signals must not break off what the first one has set going.
        if self._is_wanted:
            return
        self._is_wanted = True
        os.write(self._writer, b"\0")
        if not self._is_deferred:
            raise KeyboardInterrupt
