"""Everything in this package that uses Optuna's private API; checked with Optuna 5.0.0.

Optuna may change its private API in any release. ``tests/study/test_optuna_internals.py`` compares the installed
release with the one that was checked, and reports the differences.
"""

import abc
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, Concatenate, ParamSpec, TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import Session

_P = ParamSpec("_P")
_T = TypeVar("_T")


def id_of(trial: optuna.Trial | FrozenTrial) -> int:
    """Return a trial's id, which is unique in its storage; ``trial.number`` is unique in its study only."""
    return trial._trial_id


def storage_of(study: optuna.Study) -> BaseStorage:
    """Return the storage of a study, as Optuna wraps it: an RDBStorage is wrapped in a cache."""
    return study._storage


def was_stopped(study: optuna.Study) -> bool:
    """Return whether ``study.stop()`` ended the last ``study.optimize()``."""
    return study._stop_flag


def is_enqueued(trial: FrozenTrial) -> bool:
    """Return whether a trial was created by ``study.enqueue_trial()``."""
    return "fixed_params" in trial.system_attrs


def retry_history(trial: FrozenTrial) -> list[int]:
    """Return the numbers of the trials that this one retries, oldest first; empty if it is no retry.

    ``RetryHeartbeatStaleTrialCallback.retry_history()`` returns the same, but warns at each call.
    """
    return list(trial.system_attrs.get("retry_history", ()))


def start_retries_first(study: optuna.Study) -> None:
    """Make ``study.optimize()`` start waiting retries before all other enqueued trials.

    Optuna starts enqueued trials in the order of their numbers, so the training of an interrupted trial would be
    resumed only after all of the search's starting architectures.
    """

    def start_waiting_trial() -> int | None:
        waiting = study._storage.get_all_trials(study._study_id, deepcopy=False, states=(TrialState.WAITING,))
        for trial in sorted(waiting, key=lambda trial: not retry_history(trial)):
            with suppress(UpdateFinishedTrialError):
                if study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                    return trial._trial_id
        return None

    study._pop_waiting_trial_id = start_waiting_trial  # type: ignore[method-assign]


def last_heartbeat(storage: RDBStorage, trial_id: int) -> tuple[datetime, datetime] | None:
    """Return the time of a trial's last heartbeat and the current time, both by the database's clock.

    Returns None if no heartbeat was recorded.
    """
    query = sqlalchemy.select(models.TrialHeartbeatModel.heartbeat, sqlalchemy.func.now()).filter_by(trial_id=trial_id)
    with _create_scoped_session(storage.scoped_session) as session:
        row = session.execute(query).one_or_none()
    return row and (row[0], row[1].replace(tzinfo=None))


def fail_trial(storage: RDBStorage, trial_id: int, heartbeat: datetime | None, attributes: Mapping[str, Any]) -> bool:
    """Set a trial to FAIL in one transaction, if it is running and has had no heartbeat since ``heartbeat``.

    Args:
        storage: The storage that holds the trial.
        trial_id: Id of the trial in the storage.
        heartbeat: Time of the last heartbeat that the caller knows; None if it knows of none.
        attributes: User attributes to set on the trial.

    Returns:
        Whether the trial was set to FAIL; if not, nothing was written.
    """
    with exclusive_session(storage) as session:
        trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
        last = models.TrialHeartbeatModel.where_trial_id(trial_id, session)
        if trial.state != TrialState.RUNNING or (last and last.heartbeat) != heartbeat:
            return False
        for key, value in attributes.items():
            storage._set_trial_attr_without_commit(session, models.TrialUserAttributeModel, trial_id, key, value)
        trial.state = TrialState.FAIL
        trial.datetime_complete = datetime.now()
    return True


@contextmanager
def exclusive_session(storage: RDBStorage) -> Iterator[Session]:
    """Open a session that the methods of ``storage`` use within the context, and keep other writers out.

    On SQLite, which has no SELECT FOR UPDATE, no other process can write until the session ends. On other databases
    Optuna locks the rows that it is about to change.
    """
    with _create_scoped_session(storage.scoped_session) as session:
        if storage.engine.dialect.name == "sqlite":
            session.execute(sqlalchemy.text("BEGIN IMMEDIATE"))
        yield session


def _repeated(method: Callable[Concatenate[Any, _P], _T]) -> Callable[Concatenate[Any, _P], _T]:
    """Wrap a method of RDBStorage so that ``RepeatingStorage.repeat`` calls it."""

    @functools.wraps(method)
    def call(self: "RepeatingStorage", /, *args: _P.args, **others: _P.kwargs) -> _T:
        return self.repeat(functools.partial(method, self, *args, **others))

    return call


class RepeatingStorage(RDBStorage):
    """Optuna's RDBStorage with each transaction wrapped in ``repeat``, which subclasses implement.

    The wrapped methods are those that open a session. Each is one transaction: it changes the database completely or
    not at all, so it can be repeated. All other methods call these, and so does the cache through which a study uses
    its RDBStorage, which is why private methods are wrapped, too. Three methods open a session and are not wrapped:
    ``set_trial_state_values``, which must not run twice, and ``record_heartbeat`` and ``_get_stale_trial_ids``, which
    Optuna does not call for a storage without a heartbeat interval.
    """

    @abc.abstractmethod
    def repeat(self, transaction: Callable[[], _T]) -> _T:
        """Call ``transaction``, again while the database does not answer, and return its result."""

    create_new_study = _repeated(RDBStorage.create_new_study)
    delete_study = _repeated(RDBStorage.delete_study)
    set_study_user_attr = _repeated(RDBStorage.set_study_user_attr)
    set_study_system_attr = _repeated(RDBStorage.set_study_system_attr)
    get_study_id_from_name = _repeated(RDBStorage.get_study_id_from_name)
    get_study_name_from_id = _repeated(RDBStorage.get_study_name_from_id)
    get_study_directions = _repeated(RDBStorage.get_study_directions)
    get_study_user_attrs = _repeated(RDBStorage.get_study_user_attrs)
    get_study_system_attrs = _repeated(RDBStorage.get_study_system_attrs)
    get_all_studies = _repeated(RDBStorage.get_all_studies)
    _create_new_trial = _repeated(RDBStorage._create_new_trial)
    _set_trial_param = _repeated(RDBStorage._set_trial_param)
    set_trial_intermediate_value = _repeated(RDBStorage.set_trial_intermediate_value)
    set_trial_user_attr = _repeated(RDBStorage.set_trial_user_attr)
    set_trial_system_attr = _repeated(RDBStorage.set_trial_system_attr)
    get_trial = _repeated(RDBStorage.get_trial)
    get_trial_id_from_study_id_trial_number = _repeated(RDBStorage.get_trial_id_from_study_id_trial_number)
    get_trial_param = _repeated(RDBStorage.get_trial_param)
    get_trial_user_attrs = _repeated(RDBStorage.get_trial_user_attrs)
    get_trial_system_attrs = _repeated(RDBStorage.get_trial_system_attrs)
    _get_trials = _repeated(RDBStorage._get_trials)
    _get_best_trial_id = _repeated(RDBStorage._get_best_trial_id)
