"""ClaimLock: lets one worker at a time start its next trial.

Optuna starts a trial whenever a worker asks for one. Without a lock, workers that count the trials and then ask would
together start more than the requested total, and two workers that ask at the same time may get the same architecture.
A worker therefore holds this lock for one turn: from counting the trials until its proposal is in the database.
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

# Seconds after which the database server ends a turn. A turn normally takes about a second; one that lasts this long
# belongs to a worker that is suspended or unreachable. A worker that has waited this long for its turn logs a warning.
LONGEST_TURN = 60.0
# PostgreSQL's error code for a lock timeout.
_LOCK_NOT_AVAILABLE = "55P03"


class ClaimLock:
    """A lock that all workers of a study share through its database.

    On PostgreSQL and MySQL it is an advisory lock of the server, which is released when the connection closes. With
    SQLite it is a file lock on ``<database file>.lock``, which is released when the process ends. So a killed worker
    never leaves the lock held. A server ends a turn after ``LONGEST_TURN`` seconds at the latest. No connection is kept
    open between turns.

    Args:
        storage: The storage that holds the study.
        name: Name of the study. On a server each study has its own lock; studies in one SQLite file share one.
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
        """Release the lock.

        Returns:
            False if the lock was lost before this call, because the server restarted or the turn took longer than
            ``LONGEST_TURN``. True otherwise, also if the lock was already released.
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
        """Wait for the lock for at most ``LONGEST_TURN`` seconds, and return whether it was acquired."""
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
        # These settings end with the transaction, so the connection returns to the pool unchanged.
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
            "%s: has waited %.0f s for another worker to start its trial; that worker may be suspended",
            self._name,
            LONGEST_TURN,
        )


def _drop(connection: Any) -> None:
    """Close a connection that is broken or holds a lock, instead of returning it to the pool."""
    with contextlib.suppress(SQLAlchemyError):
        connection.invalidate()
    connection.close()
