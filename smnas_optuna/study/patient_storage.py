"""PatientStorage: Optuna's RDBStorage that waits for a database that is away, and keeps the leases of trials."""

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


@dataclass(frozen=True)
class SignOfLife:
    """The last renewal of a running trial's lease, as the database has it.

    Args:
        moment: By the database's clock.
        age: Seconds since then, by the same clock.
    """

    moment: datetime
    age: float


class PatientStorage(RepeatingStorage):
    """Optuna's storage in an SQL database, which repeats what failed because the database was away.

    A dropped connection, a restarting server or a lock held for too long make it wait, longer each time, and try again;
    what is wrong with a statement itself is raised at once.

    Leases take the place of Optuna's heartbeats, after which Optuna would fail a trial whose owner is alive but could
    not reach the database, or was suspended, for a while. They are recorded in Optuna's own table of heartbeats.

    Args:
        patience: Seconds after which it gives up.
        lease_seconds: How often a worker renews the lease of its trial; it has expired after three times as long.
        others: As :class:`optuna.storages.RDBStorage` has them.
    """

    def __init__(self, *args: Any, patience: float = PATIENCE, lease_seconds: float, **others: Any) -> None:
        super().__init__(*args, **others)
        self.patience = patience
        self.lease_seconds = lease_seconds
        self.last_failure = -math.inf

    def note_failure(self) -> None:
        """Note that the database has not answered just now; ``last_failure`` has the time by ``time.monotonic()``."""
        self.last_failure = time.monotonic()

    def renew_lease(self, trial_id: int) -> bool:
        """Record that the owner of a trial is alive, and return whether the trial is still its own; does not wait."""
        RDBStorage.record_heartbeat(self, trial_id)
        return RDBStorage.get_trial(self, trial_id).state == TrialState.RUNNING

    def sign_of_life(self, trial_id: int) -> SignOfLife | None:
        """Return when the lease of a trial was renewed last; None where its owner has not recorded one yet."""
        heard = self.repeat(partial(last_heartbeat, self, trial_id))
        return heard and SignOfLife(heard[0], (heard[1] - heard[0]).total_seconds())

    def take_over(self, trial_id: int, last: SignOfLife | None, attributes: Mapping[str, Any]) -> bool:
        """Fail a running trial in the place of its owner, which cannot write to it any more from then on.

        Args:
            trial_id: The trial.
            last: The owner's last sign of life that the caller knows; where there is a later one nothing happens.
            attributes: User attributes for the trial.

        Returns:
            Whether the trial was failed; False where it has ended, or its owner is alive.
        """
        return self.repeat(partial(fail_trial, self, trial_id, last.moment if last else None, attributes))

    def repeat(self, transaction: Callable[[], _T]) -> _T:
        """Call ``transaction`` until the database answers; see :func:`wait_for_database`."""
        return wait_for_database(transaction, self.patience, self.note_failure)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set a trial's state; see the base class."""
        attempts = 0

        def attempt() -> bool:
            nonlocal attempts
            attempts += 1
            # The base class looks at the state and writes it in this session. Another process could take the trial
            # over in between on SQLite.
            with exclusive_session(self):
                return RDBStorage.set_trial_state_values(self, trial_id, state, values)

        try:
            return self.repeat(attempt)
        except UpdateFinishedTrialError:
            # The connection may have dropped after the first attempt had been committed.
            if attempts > 1 and self.get_trial(trial_id).state == state:
                return True
            raise


def wait_for_database(attempt: Callable[[], _T], patience: float, failed: Callable[[], None] = lambda: None) -> _T:
    """Call ``attempt`` until the database answers it.

    Args:
        attempt: What to do in the database.
        patience: Seconds after which the last error is raised.
        failed: Called each time that the database does not answer.
    """
    started = time.monotonic()
    wait = _FIRST_WAIT
    while True:
        try:
            return attempt()
        except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
            failed()
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
