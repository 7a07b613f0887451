"""ClaimLock: lets one worker at a time take its next trial.

Optuna starts a trial whenever it is asked to, so workers that count first and ask then overshoot a total, and two that
ask at the same time may get the same architecture. Whoever holds this lock from counting until its proposal is in the
database does neither.
"""

import fcntl
import hashlib
import os
from types import TracebackType
from typing import Any

from optuna.storages import RDBStorage
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from smnas_optuna.patient_storage import PATIENCE, wait_for_database


class ClaimLock:
    """A lock that all workers of a study share through its database.

    On PostgreSQL and MySQL it is the server's own advisory lock, which goes with the connection that holds it; beside
    an SQLite file it is a lock on ``<file>.lock``, which goes with the process. A worker that is killed leaves none.

    Args:
        storage: The study's.
        name: The study's; each has a lock of its own.
    """

    def __init__(self, storage: RDBStorage, name: str) -> None:
        self._engine = storage.engine
        self._number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
        self._connection: Any = None
        self._file: int | None = None
        self._held = False

    def acquire(self) -> None:
        """Wait until no other worker has the lock, then take it."""
        if self._engine.dialect.name == "sqlite":
            self._file = os.open(f"{self._engine.url.database}.lock", os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(self._file, fcntl.LOCK_EX)
        else:
            wait_for_database(self._acquire_on_server, PATIENCE)
        self._held = True

    def release(self) -> bool:
        """Give the lock back.

        Returns:
            Whether it had been held all the time; a restart of the server ends it early. True where it was given back
            before.
        """
        if not self._held:
            return True
        self._held = False
        if self._file is not None:
            os.close(self._file)
            self._file = None
            return True
        function = "pg_advisory_unlock(:number)" if self._is_postgresql else "RELEASE_LOCK(:number)"
        try:
            return bool(self._connection.execute(text(f"SELECT {function}"), {"number": self._key}).scalar())
        except SQLAlchemyError:
            self._disconnect()
            return False

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
    def _key(self) -> int | str:
        return self._number if self._is_postgresql else f"smnas_optuna {self._number}"

    def _acquire_on_server(self) -> None:
        try:
            if self._connection is None:
                self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            if self._is_postgresql:
                self._connection.execute(text("SELECT pg_advisory_lock(:number)"), {"number": self._key})
            else:
                # -1 waits without end.
                self._connection.execute(text("SELECT GET_LOCK(:number, -1)"), {"number": self._key})
        except SQLAlchemyError:
            self._disconnect()
            raise

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()
