"""Interruption: ends a worker, or the process that supervises workers, cleanly when it gets a signal."""

import contextlib
import os
import signal
from collections.abc import Iterator


class Interruption:
    """Turns the first signal into a KeyboardInterrupt: at once or, within :meth:`deferred`, only where it is asked for.

    Later signals are ignored. They would break off the orderly end that the first one has set going, and many senders,
    such as ``timeout``, signal a process and its group.

    Optuna cannot be interrupted while it begins or ends a trial: the trial would be left running. And an exception
    that a signal raises in a finalizer is lost. It has a ``fileno()`` that becomes readable with the first signal, for
    :func:`multiprocessing.connection.wait`.
    """

    def __init__(self) -> None:
        self._is_wanted = False
        self._is_deferred = False
        self._reader, self._writer = os.pipe()

    @contextlib.contextmanager
    def listen(self, *signals: signal.Signals) -> Iterator[None]:
        """Handle these signals while the context is entered, and restore their former handlers at its end."""
        former = {number: signal.signal(number, self._take_in) for number in signals}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def fileno(self) -> int:
        """Return a file descriptor that becomes readable when the worker has to end."""
        return self._reader

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was a signal."""
        if self._is_wanted:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Raise nothing while the context is entered; raise KeyboardInterrupt at its end if there was a signal."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        self.check()

    def _take_in(self, *_: object) -> None:
        if self._is_wanted:
            return
        self._is_wanted = True
        os.write(self._writer, b"\0")
        if not self._is_deferred:
            raise KeyboardInterrupt
