"""PatientStorage: an RDBStorage that waits for an unreachable database, and stores the leases of trials."""

import logging
import math
import random
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import sqlalchemy.exc
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from smnas_optuna.study.optuna_internals import RepeatingStorage, exclusive_session, fail_trial, last_heartbeat

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

# Seconds to wait for a database that has answered before and no longer does.
PATIENCE = 900.0

# Seconds between two attempts.
_FIRST_WAIT = 0.2
_LONGEST_WAIT = 5.0
# Seconds of waiting after which each further attempt logs a warning.
_WARN_AFTER_SECONDS = 10.0
_TRANSIENT_ERRORS = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
    # Optuna asks for trials a second time in the session in which the connection was lost.
    sqlalchemy.exc.PendingRollbackError,
)


@dataclass(frozen=True)
class LeaseRenewal:
    """The last renewal of a running trial's lease.

    Args:
        moment: Time of the renewal by the database's clock.
        age: Seconds since the renewal by the database's clock.
    """

    moment: datetime
    age: float


class PatientStorage(RepeatingStorage):
    """An RDBStorage that repeats transactions that failed because the database was unreachable, and stores leases.

    After a dropped connection, a server restart or a lock timeout it waits, longer each time, and tries again. An error
    in a statement itself is raised at once.

    Leases replace Optuna's heartbeats: Optuna would fail a trial whose owner is alive but was suspended, or could not
    reach the database, for a while. Lease renewals are stored in Optuna's heartbeat table.

    Args:
        args: Positional arguments of :class:`optuna.storages.RDBStorage`.
        patience: Seconds to wait for the database before the error is raised.
        lease_seconds: Seconds between two renewals of a trial's lease. A lease expires after three times as long.
        others: Keyword arguments of :class:`optuna.storages.RDBStorage`.
    """

    def __init__(self, *args: Any, patience: float = PATIENCE, lease_seconds: float, **others: Any) -> None:
        super().__init__(*args, **others)
        self.patience = patience
        self.lease_seconds = lease_seconds
        self.last_failure = -math.inf

    def note_failure(self) -> None:
        """Set ``last_failure``, the time of the last failed attempt by ``time.monotonic()``, to now."""
        self.last_failure = time.monotonic()

    def renew_lease(self, trial_id: int) -> bool:
        """Renew the lease of a trial, and return whether the trial is still running.

        If it is not, another worker has taken it over. Unlike other methods this one does not wait for the database.
        """
        RDBStorage.record_heartbeat(self, trial_id)
        return RDBStorage.get_trial(self, trial_id).state == TrialState.RUNNING

    def last_renewal(self, trial_id: int) -> LeaseRenewal | None:
        """Return the last renewal of a trial's lease; None if the lease was never renewed."""
        times = self.repeat(partial(last_heartbeat, self, trial_id))
        return times and LeaseRenewal(times[0], (times[1] - times[0]).total_seconds())

    def take_over(self, trial_id: int, last: LeaseRenewal | None, attributes: Mapping[str, Any]) -> bool:
        """Set a running trial to FAIL, so that its owner can no longer write to it.

        Args:
            trial_id: Id of the trial in the storage.
            last: The last renewal that the caller knows. If the lease was renewed since then, nothing happens.
            attributes: User attributes to set on the trial.

        Returns:
            Whether the trial was set to FAIL; False if it has ended, or its lease was renewed since ``last``.
        """
        return self.repeat(partial(fail_trial, self, trial_id, last.moment if last else None, attributes))

    def repeat(self, transaction: Callable[[], _T]) -> _T:
        """Call ``transaction``, again while the database does not answer; see :func:`wait_for_database`."""
        return wait_for_database(transaction, self.patience, self.note_failure)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set a trial's state; see the base class."""
        attempts = 0

        def attempt() -> bool:
            nonlocal attempts
            attempts += 1
            # The base class reads the state and then writes it. On SQLite another process could take the trial over
            # in between, so both happen in one exclusive session.
            with exclusive_session(self):
                return RDBStorage.set_trial_state_values(self, trial_id, state, values)

        try:
            return self.repeat(attempt)
        except UpdateFinishedTrialError:
            # The connection may have dropped after the first attempt had been committed.
            if attempts > 1 and self.get_trial(trial_id).state == state:
                return True
            raise


def wait_for_database(attempt: Callable[[], _T], patience: float, on_failure: Callable[[], None] = lambda: None) -> _T:
    """Call ``attempt`` until it succeeds, and return its result.

    Args:
        attempt: Function that uses the database; it is called again after a transient error, such as a lost connection.
        patience: Seconds after which a transient error is raised instead.
        on_failure: Called after each error.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: The error is not transient, or ``patience`` has run out.
        optuna.exceptions.StorageInternalError: The same, for an error that Optuna has wrapped.
    """
    started = time.monotonic()
    wait = _FIRST_WAIT
    while True:
        try:
            return attempt()
        except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
            on_failure()
            if not _is_transient(error) or time.monotonic() + wait > started + patience:
                raise
            if time.monotonic() > started + _WARN_AFTER_SECONDS:
                _logger.warning("the database does not answer; trying again in %.0f s", wait)
        # Random, so that not all workers try again at the same time.
        time.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2 * wait, _LONGEST_WAIT)


def _is_transient(error: BaseException) -> bool:
    """Return whether the same statement may succeed later."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if "already exists" in str(cause) or "alembic_version" in str(cause):
        # If several processes create the tables at the same time, all but one fail once and find them created later.
        return True
    if isinstance(getattr(cause, "orig", None), sqlite3.Error):
        return "locked" in str(cause)
    return isinstance(cause, _TRANSIENT_ERRORS) or (
        isinstance(cause, sqlalchemy.exc.DBAPIError) and cause.connection_invalidated
    )
