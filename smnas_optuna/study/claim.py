"""ClaimLock: lets one worker at a time take its next trial.

Optuna starts a trial whenever it is asked to, so workers that count first and ask then overshoot a total, and two that
ask at the same time may get the same architecture. Whoever holds this lock from counting until its proposal is in the
database does neither.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from optuna.storages import RDBStorage
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from smnas_optuna.study.patient_storage import PATIENCE, wait_for_database

_logger = logging.getLogger(__name__)

# A turn takes a second or so. The server ends one that lasts longer, in seconds, since its worker is suspended or its
# machine is gone; whoever waits for longer says so.
LONGEST_TURN = 60.0
# PostgreSQL's code for a lock that was waited for too long.
_LOCK_NOT_AVAILABLE = "55P03"


class ClaimLock:
    """A lock that all workers of a study share through its database.

    On PostgreSQL and MySQL it is the server's own advisory lock, which goes with the connection that holds it; beside
    an SQLite file it is a lock on ``<file>.lock``, which goes with the process. A worker that is killed leaves none. On
    a server a turn ends after ``LONGEST_TURN`` at the latest. No connection is kept between turns.

    Args:
        storage: The study's.
        name: The study's; each has a lock of its own.
    """

    def __init__(self, storage: RDBStorage, name: str) -> None:
        self._name = name
        self._engine = storage.engine
        self._number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
        self._connection: Any = None
        self._file: int | None = None

    def acquire(self) -> None:
        """Wait until no other worker has the lock, then take it."""
        if self._engine.dialect.name == "sqlite":
            self._acquire_file()
        else:
            while not wait_for_database(self._acquire_on_server, PATIENCE):
                self._warn_of_wait()

    def release(self) -> bool:
        """Give the lock back.

        Returns:
            Whether it had been held all the time; a restart of the server or the longest turn's end ends it early. True
            where it was given back before.
        """
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._connection is None:
            return True
        connection, self._connection = self._connection, None
        try:
            if self._is_postgresql:
                connection.commit()
            else:
                connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": self._key})
                connection.execute(text("SET SESSION wait_timeout = DEFAULT"))
            connection.close()
        except SQLAlchemyError:
            _logger.warning(
                "%s: the turn to start a trial was lost: the server was restarted, or it took more than %.0f s",
                self._name,
                LONGEST_TURN,
            )
            _drop(connection)
            return False
        return True

    def __enter__(self) -> "ClaimLock":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def _is_postgresql(self) -> bool:
        return self._engine.dialect.name == "postgresql"

    @property
    def _key(self) -> str:
        return f"smnas_optuna {self._number}"

    def _acquire_file(self) -> None:
        self._file = os.open(f"{self._engine.url.database}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        with self._warn_after_longest_turn():
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def _acquire_on_server(self) -> bool:
        """Wait for the lock, for as long as a turn may last, and return whether it was taken."""
        connection = self._engine.connect()
        try:
            taken = self._lock_postgresql(connection) if self._is_postgresql else self._lock_mysql(connection)
        except BaseException:
            _drop(connection)
            raise
        if taken:
            self._connection = connection
        else:
            connection.close()
        return taken

    def _lock_postgresql(self, connection: Any) -> bool:
        # All of it ends with the transaction, so that the pool gets the connection back as it was.
        connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{LONGEST_TURN:.0f}s'"))
        connection.execute(text(f"SET LOCAL lock_timeout = '{LONGEST_TURN:.0f}s'"))
        try:
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": self._number})
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                raise
            connection.rollback()
            return False
        return True

    def _lock_mysql(self, connection: Any) -> bool:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        query = text("SELECT GET_LOCK(:name, :seconds)")
        if connection.execute(query, {"name": self._key, "seconds": int(LONGEST_TURN)}).scalar() != 1:
            return False
        connection.execute(text(f"SET SESSION wait_timeout = {LONGEST_TURN:.0f}"))
        return True

    @contextlib.contextmanager
    def _warn_after_longest_turn(self) -> Iterator[None]:
        timer = threading.Timer(LONGEST_TURN, self._warn_of_wait)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _warn_of_wait(self) -> None:
        _logger.warning(
            "%s: has waited %.0f s for another worker to start its trial; it may be suspended", self._name, LONGEST_TURN
        )


def _drop(connection: Any) -> None:
    """Close a connection that is broken or holds a lock, instead of giving it back to the pool."""
    with contextlib.suppress(SQLAlchemyError):
        connection.invalidate()
    connection.close()
