"""PatientStorage: Optuna's RDBStorage that waits for a database that is away for a while."""

import functools
import logging
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import sqlalchemy.exc
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

# How long a database that was there before is waited for, in seconds.
PATIENCE = 900.0

_FIRST_WAIT = 0.2
_LONGEST_WAIT = 5.0
# A wait that lasts longer is told.
_SILENT_SECONDS = 10.0
_OF_THE_MOMENT = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
    # Optuna asks for trials a second time in the session in which the connection was lost.
    sqlalchemy.exc.PendingRollbackError,
)
# What RDBStorage does in the database; every one is a transaction that either happened or did not.
_TRANSACTIONS = (
    "create_new_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "_create_new_trial",
    "_set_trial_param",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "get_trial",
    "_get_trials",
    "get_trial_id_from_study_id_trial_number",
    "record_heartbeat",
    "_get_stale_trial_ids",
)


class PatientStorage(RDBStorage):
    """Optuna's storage in an SQL database, which repeats what failed because the database was away.

    A dropped connection, a restarting server or a lock held for too long make it wait, longer each time, and try again;
    what is wrong with a statement itself is raised at once.

    Args:
        patience: Seconds after which it gives up.
        others: As :class:`optuna.storages.RDBStorage` has them.
    """

    def __init__(self, *args: Any, patience: float = PATIENCE, **others: Any) -> None:
        super().__init__(*args, **others)
        self.patience = patience

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set a trial's state; see the base class."""
        attempts = 0

        def attempt() -> bool:
            nonlocal attempts
            attempts += 1
            return RDBStorage.set_trial_state_values(self, trial_id, state, values)

        try:
            return wait_for_database(attempt, self.patience)
        except UpdateFinishedTrialError:
            # The connection may have dropped after the first attempt had been committed.
            if attempts > 1 and self.get_trial(trial_id).state == state:
                return True
            raise


def _patiently(name: str) -> Callable[..., Any]:
    method = getattr(RDBStorage, name)

    @functools.wraps(method)
    def repeat(self: PatientStorage, *args: Any, **others: Any) -> Any:
        return wait_for_database(functools.partial(method, self, *args, **others), self.patience)

    return repeat


for _name in _TRANSACTIONS:
    setattr(PatientStorage, _name, _patiently(_name))


def wait_for_database(attempt: Callable[[], _T], patience: float) -> _T:
    """Call ``attempt`` until the database answers it.

    Args:
        attempt: What to do in the database.
        patience: Seconds after which the last error is raised.
    """
    started = time.monotonic()
    wait = _FIRST_WAIT
    while True:
        try:
            return attempt()
        except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
            if not _is_of_the_moment(error) or time.monotonic() + wait > started + patience:
                raise
            if time.monotonic() > started + _SILENT_SECONDS:
                _logger.warning("the database does not answer; trying again in %.0f s", wait)
        # Spread, so that many workers do not come back at once.
        time.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2 * wait, _LONGEST_WAIT)


def _is_of_the_moment(error: BaseException) -> bool:
    """Tell whether an error is not the statement's fault, so that it may succeed another time."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if "already exists" in str(cause) or "alembic_version" in str(cause):
        # Of several processes that make the tables at the same time all but one fail, and then find them made.
        return True
    if isinstance(getattr(cause, "orig", None), sqlite3.Error):
        return "locked" in str(cause)
    return isinstance(cause, _OF_THE_MOMENT) or (
        isinstance(cause, sqlalchemy.exc.DBAPIError) and cause.connection_invalidated
    )
