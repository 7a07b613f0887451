"""The database that studies are kept in, shared by all workers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import psutil
import sqlalchemy.exc
from sqlalchemy.engine import URL, make_url

from smnas_optuna.errors import UserError
from smnas_optuna.study.patient_storage import PATIENCE, PatientStorage, wait_for_database

# Seconds between two renewals of a trial's lease.
LEASE_SECONDS = 20.0

# Seconds that SQLite waits for another process's lock.
_BUSY_SECONDS = 60
_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "lustre", "gluster", "ceph", "afs", "gpfs", "beegfs")


def open_storage(
    url: str, *, create: bool = True, lease_seconds: float = LEASE_SECONDS, patience: float = 5.0
) -> PatientStorage:
    """Open a database.

    Args:
        url: SQLAlchemy URL, such as ``sqlite:///smnas.db`` or ``postgresql+psycopg://user:password@host/name``. Or
            ``@FILE``: the first line of the file is the URL, so the process list does not show the password.
        create: Create Optuna's tables, and SQLite's file, if absent. If False, nothing is written.
        lease_seconds: Seconds between two renewals of a running trial's lease, see ``lease.py``.
        patience: Seconds to wait for the database to answer for the first time. Later the storage waits for up to
            ``PATIENCE`` seconds.

    Raises:
        UserError: The URL is wrong, its driver is not installed, or the database cannot be reached or used.
    """
    parsed = storage_url(url)
    shown = mask(parsed)
    arguments: dict[str, Any] = {}
    is_sqlite = parsed.get_backend_name() == "sqlite"
    if is_sqlite:
        if parsed.database in (None, "", ":memory:"):
            raise UserError(
                f"--storage {shown}: in-memory databases are not supported; expected a file, such as sqlite:///smnas.db"
            )
        if not create and not Path(str(parsed.database)).exists():
            raise UserError(f"--storage {shown}: no such database file")
        arguments["timeout"] = _BUSY_SECONDS
    with database_errors(parsed):
        storage = wait_for_database(
            lambda: PatientStorage(
                parsed.render_as_string(hide_password=False),
                # A trial may take hours, and servers drop connections that are silent for so long.
                engine_kwargs={"pool_pre_ping": True, "connect_args": arguments},
                skip_table_creation=not create,
                lease_seconds=lease_seconds,
                patience=patience,
            ),
            patience,
        )
        if is_sqlite and create and network_file_system(parsed) is None:
            with storage.engine.connect() as connection:
                # Readers then do not wait for a writer, nor a writer for them.
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        storage.get_all_studies()
    storage.patience = PATIENCE
    return storage


def storage_url(text: str) -> URL:
    """Parse a database URL, or read it from ``@FILE``; raises UserError."""
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8").partition("\n")[0].strip()
        except OSError as error:
            raise UserError(f"--storage {text}: cannot be read: {error.strerror}") from None
    try:
        return make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise UserError("--storage: not a database URL; expected one such as sqlite:///smnas.db") from None


def mask(url: URL) -> str:
    """Return a URL with its password masked, to be shown in messages."""
    return url.render_as_string(hide_password=True)


def network_file_system(url: URL) -> str | None:
    """Return the type of network file system that an SQLite database is on, None for a local one."""
    path = Path(str(url.database)).resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if path.is_relative_to(part.mountpoint)]
    if not mounts:
        return None
    kind = str(max(mounts, key=lambda part: len(part.mountpoint)).fstype)
    return kind if kind.lower().startswith(_NETWORK_FILE_SYSTEMS) else None


@contextmanager
def database_errors(url: URL) -> Iterator[None]:
    """Raise errors of a database as UserError, without the password."""
    shown = mask(url)
    try:
        yield
    except ImportError as error:
        raise UserError(f"--storage {shown}: its driver is not installed: {error.__cause__ or error}") from None
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        cause = error.__cause__ or error
        text = str(getattr(cause, "orig", None) or cause)
        message = text.replace(url.password, "***") if url.password else text
        raise UserError(f"--storage {shown}: cannot be used: {message}") from None
