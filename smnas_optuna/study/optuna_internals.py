"""All that this package uses of Optuna's private API; checked with Optuna 5.0.0.

Optuna may change it in any release. ``tests/study/test_optuna_internals.py`` compares the installed Optuna with what
was checked here, and says what differs.
"""

import abc
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Concatenate, ParamSpec, TypeVar

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import Session

_P = ParamSpec("_P")
_T = TypeVar("_T")


def id_of(trial: optuna.Trial | FrozenTrial) -> int:
    """Return what a storage knows a trial by; a trial's number counts within its study."""
    return trial._trial_id


def storage_of(study: optuna.Study) -> BaseStorage:
    """Return the storage of a study, within Optuna's cache of it."""
    return study._storage


def was_stopped(study: optuna.Study) -> bool:
    """Tell whether ``study.stop()`` has ended the last ``study.optimize()``."""
    return study._stop_flag


def is_enqueued(trial: FrozenTrial) -> bool:
    """Tell whether ``study.enqueue_trial()`` has made a trial."""
    return "fixed_params" in trial.system_attrs


def retry_history(trial: FrozenTrial) -> list[int]:
    """Return what ``RetryHeartbeatStaleTrialCallback.retry_history()`` does, which warns at each call."""
    return list(trial.system_attrs.get("retry_history", ()))


def last_heartbeat(storage: RDBStorage, trial_id: int) -> tuple[datetime, datetime] | None:
    """Return when a trial's heartbeat was recorded last, and the present time, both by the database's clock."""
    query = sqlalchemy.select(models.TrialHeartbeatModel.heartbeat, sqlalchemy.func.now()).filter_by(trial_id=trial_id)
    with _create_scoped_session(storage.scoped_session) as session:
        found = session.execute(query).one_or_none()
    return found and (found[0], found[1].replace(tzinfo=None))


def fail_trial(storage: RDBStorage, trial_id: int, heartbeat: datetime | None, attributes: Mapping[str, Any]) -> bool:
    """Fail a trial in one transaction, if it is running and ``heartbeat`` is still its last one.

    Args:
        storage: The database that the trial is in.
        trial_id: The trial.
        heartbeat: The last one that the caller knows.
        attributes: User attributes for the trial.

    Returns:
        Whether the trial was failed.
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
    """Open the session that methods of ``storage`` use within it; on SQLite no other process can write until it ends.

    On other databases the rows that Optuna means to change are locked; SQLite knows no SELECT FOR UPDATE.
    """
    with _create_scoped_session(storage.scoped_session) as session:
        if storage.engine.dialect.name == "sqlite":
            session.execute(sqlalchemy.text("BEGIN IMMEDIATE"))
        yield session


def _repeated(method: Callable[Concatenate[Any, _P], _T]) -> Callable[Concatenate[Any, _P], _T]:
    @functools.wraps(method)
    def call(self: "RepeatingStorage", /, *args: _P.args, **others: _P.kwargs) -> _T:
        return self.repeat(functools.partial(method, self, *args, **others))

    return call


class RepeatingStorage(RDBStorage):
    """Optuna's RDBStorage, whose transactions go through ``repeat``.

    They are the methods of RDBStorage that open a session: what each does in the database happens as a whole or not at
    all. The other methods call these, and so does Optuna's cache, through which a study uses its RDBStorage; hence the
    private ones. Three open a session and are not repeated: ``set_trial_state_values``, which may not be done twice,
    and ``record_heartbeat`` and ``_get_stale_trial_ids``, which a study does not use without a heartbeat interval.
    """

    @abc.abstractmethod
    def repeat(self, transaction: Callable[[], _T]) -> _T:
        """Call ``transaction`` until the database answers, and return what it returns."""

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
