"""The database that studies are kept in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import sqlalchemy.exc
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, make_url

from smnas_optuna.errors import UserError

DEFAULT_STORAGE = "sqlite:///smnas.db"


def open_storage(url: str, *, create: bool = True) -> RDBStorage:
    """Open a database.

    Args:
        url: As SQLAlchemy has it, such as ``sqlite:///smnas.db`` or ``postgresql+psycopg://user:password@host/name``.
        create: Make Optuna's tables (and for SQLite the file) where they are absent.

    Raises:
        UserError: The URL is wrong, its driver is not installed, or the database cannot be reached or used.
    """
    try:
        parsed = make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise UserError("--storage: not a database URL; expected one such as sqlite:///smnas.db") from None
    shown = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UserError(f"--storage {shown}: keeps nothing; expected a file, such as sqlite:///smnas.db")
    missing = parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).exists()
    if missing and not create:
        raise UserError(f"--storage {shown}: no such database file")
    with database_errors(parsed):
        # A trial may take hours, and servers drop connections that are silent for so long.
        storage = RDBStorage(url, engine_kwargs={"pool_pre_ping": True}, skip_table_creation=not create)
        storage.get_all_studies()
    return storage


@contextmanager
def database_errors(url: URL) -> Iterator[None]:
    """Tell what a database refuses as the user's error, without the password."""
    shown = url.render_as_string(hide_password=True)
    try:
        yield
    except ImportError as error:
        raise UserError(f"--storage {shown}: its driver is not installed: {error.__cause__ or error}") from None
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        cause = error.__cause__ or error
        text = str(getattr(cause, "orig", None) or cause)
        told = text.replace(url.password, "***") if url.password else text
        raise UserError(f"--storage {shown}: cannot be used: {told}") from None
