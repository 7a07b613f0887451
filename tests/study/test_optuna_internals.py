"""Fails if the installed Optuna differs from the one that ``study/optuna_internals.py`` was checked with."""

import inspect
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages._rdb import models
from optuna.storages._rdb import storage as rdb
from optuna.trial import TrialState

from smnas_optuna.study.optuna_internals import (
    RepeatingStorage,
    id_of,
    is_enqueued,
    retry_history,
    start_retries_first,
    storage_of,
    was_stopped,
)
from smnas_optuna.study.patient_storage import PatientStorage
from tests.optuna_interface import differences, public_names

ROOT = Path(__file__).parents[2]
_T = TypeVar("_T")

RDB_STORAGE = """
    _create_new_trial(self, study_id, template_trial=None)
    _get_best_trial_id(self, study_id, direction)
    _get_trials(self, study_id, states, included_trial_ids, trial_id_greater_than)
    _set_trial_attr_without_commit(self, session, model_cls, trial_id, key, value)
    _set_trial_param(self, trial_id, param_name, param_value_internal, distribution, previous_distribution)
    check_trial_is_updatable(self, trial_id, trial_state)
    create_new_study(self, directions, study_name=None)
    create_new_trial(self, study_id, template_trial=None)
    delete_study(self, study_id)
    get_all_studies(self)
    get_all_trials(self, study_id, deepcopy=True, states=None)
    get_all_versions(self)
    get_best_trial(self, study_id)
    get_current_version(self)
    get_failed_trial_callback(self)
    get_head_version(self)
    get_heartbeat_interval(self)
    get_heartbeat_stale_trial_callback(self)
    get_n_trials(self, study_id, state=None)
    get_study_directions(self, study_id)
    get_study_id_from_name(self, study_name)
    get_study_name_from_id(self, study_id)
    get_study_system_attrs(self, study_id)
    get_study_user_attrs(self, study_id)
    get_trial(self, trial_id)
    get_trial_id_from_study_id_trial_number(self, study_id, trial_number)
    get_trial_number_from_id(self, trial_id)
    get_trial_param(self, trial_id, param_name)
    get_trial_params(self, trial_id)
    get_trial_system_attrs(self, trial_id)
    get_trial_user_attrs(self, trial_id)
    record_heartbeat(self, trial_id)
    remove_session(self)
    set_study_system_attr(self, study_id, key, value)
    set_study_user_attr(self, study_id, key, value)
    set_trial_intermediate_value(self, trial_id, step, intermediate_value)
    set_trial_param(self, trial_id, param_name, param_value_internal, distribution)
    set_trial_state_values(self, trial_id, state, values=None)
    set_trial_system_attr(self, trial_id, key, value)
    set_trial_user_attr(self, trial_id, key, value)
    upgrade(self)
"""
OTHERS: list[tuple[Any, str]] = [
    (optuna.Study, "_pop_waiting_trial_id(self)"),
    (rdb, "_create_scoped_session(scoped_session, ignore_integrity_error=False)"),
    (models.TrialModel, "find_or_raise_by_id(trial_id, session, for_update=False)\nstate\ndatetime_complete"),
    (models.TrialHeartbeatModel, "where_trial_id(trial_id, session, for_update=False)\ntrial_id\nheartbeat"),
    (models.TrialUserAttributeModel, "trial_id\nkey\nvalue_json"),
]
# Methods that open or close a session and are not repeated; the docstring of RepeatingStorage gives the reasons.
NOT_REPEATED = {"set_trial_state_values", "record_heartbeat", "_get_stale_trial_ids", "remove_session"}


def changes() -> list[str]:
    """Return a sentence for each difference between the installed Optuna and the one that was checked."""
    sentences = differences(RDBStorage, RDB_STORAGE, public_names(RDBStorage))
    for owner, checked in OTHERS:
        sentences += differences(owner, checked)
    repeated = {name for name, member in vars(RepeatingStorage).items() if hasattr(member, "__wrapped__")}
    opening = {name for name in dir(RDBStorage) if not name.startswith("__") and opens_session(name)}
    sentences += [f"RDBStorage.{name} opens a session" for name in sorted(opening - repeated - NOT_REPEATED)]
    sentences += [f"RDBStorage.{name} opens no session" for name in sorted((repeated | NOT_REPEATED) - opening)]
    return sentences


def opens_session(name: str) -> bool:
    method = inspect.unwrap(getattr(RDBStorage, name))
    return "scoped_session" in getattr(getattr(method, "__code__", None), "co_names", ())


def test_optuna_has_not_changed() -> None:
    differing = "\n".join(changes())
    assert not differing, f"optuna_internals.py was not checked with Optuna {optuna.__version__}:\n{differing}"


def test_no_other_file_uses_optunas_private_api() -> None:
    private = re.compile(
        r"(?<!self)\._(trial_id|storage|study_id|stop_flag|pop_waiting_trial_id)\b|optuna[\w.]*\._|['\"](fixed_params|retry_history)['\"]"
    )
    files = [path for folder in ("smnas_optuna", "samplers") for path in (ROOT / folder).rglob("*.py")]
    files = [path for path in files if path.name != "optuna_internals.py" and "tests" not in path.parts]
    assert len(files) > 100
    assert [str(path) for path in files if private.search(path.read_text(encoding="utf-8"))] == []


def drop(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    monkeypatch.delattr(owner, name)


def rename(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    monkeypatch.setattr(owner, f"{name}_now", getattr(owner, name), raising=False)
    monkeypatch.delattr(owner, name)


def add(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    monkeypatch.setattr(owner, name, lambda self, ids: self.scoped_session().get(ids), raising=False)


def replace(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    monkeypatch.setattr(owner, name, lambda self, trial_id, *, copy=True: None)


@pytest.mark.parametrize(
    ("change", "owner", "name", "sentences"),
    [
        (
            rename,
            RDBStorage,
            "_get_trials",
            [
                "RDBStorage._get_trials(self, study_id, states, included_trial_ids, trial_id_greater_than) is gone",
                "RDBStorage._get_trials_now opens a session",
                "RDBStorage._get_trials opens no session",
            ],
        ),
        (
            rename,
            RDBStorage,
            "delete_study",
            [
                "RDBStorage.delete_study_now(self, study_id) is new",
                "RDBStorage.delete_study_now opens a session",
                "RDBStorage.delete_study opens no session",
            ],
        ),
        (add, RDBStorage, "_get_trials_of", ["RDBStorage._get_trials_of opens a session"]),
        (
            replace,
            RDBStorage,
            "get_trial",
            [
                "RDBStorage.get_trial(self, trial_id) is now get_trial(self, trial_id, *, copy=True)",
                "RDBStorage.get_trial opens no session",
            ],
        ),
        (
            drop,
            models.TrialHeartbeatModel,
            "where_trial_id",
            ["TrialHeartbeatModel.where_trial_id(trial_id, session, for_update=False) is gone"],
        ),
    ],
)
def test_a_change_of_optuna_is_reported(
    monkeypatch: pytest.MonkeyPatch, change: Callable[..., None], owner: Any, name: str, sentences: list[str]
) -> None:
    change(monkeypatch, owner, name)
    assert changes() == sentences


class WatchedStorage(PatientStorage):
    """Records all statements that are executed, and those that are executed outside of ``repeat``."""

    def __init__(self, url: str) -> None:
        self.depth = 0
        self.executed: list[str] = []
        self.outside: list[str] = []
        super().__init__(url, lease_seconds=1.0)
        sqlalchemy.event.listen(self.engine, "before_cursor_execute", lambda *arguments: self.note(arguments[2]))
        sqlalchemy.event.listen(self.engine, "commit", lambda connection: self.note("COMMIT"))

    def note(self, statement: str) -> None:
        self.executed.append(statement)
        if not self.depth:
            self.outside.append(statement)

    def repeat(self, transaction: Callable[[], _T]) -> _T:
        self.depth += 1
        try:
            return super().repeat(transaction)
        finally:
            self.depth -= 1


@pytest.fixture
def storage(tmp_path: Path) -> WatchedStorage:
    return WatchedStorage(f"sqlite:///{tmp_path}/study.db")


@pytest.fixture
def study(storage: WatchedStorage) -> optuna.Study:
    return optuna.create_study(storage=storage, study_name="any")


def objective(trial: optuna.Trial) -> float:
    trial.set_user_attr("text", "any")
    trial.set_constraint("size", 0.0)
    trial.report(0.5, step=1)
    return trial.suggest_float("x", 0, 1)


def test_all_transactions_of_a_study_go_through_repeat(storage: WatchedStorage, study: optuna.Study) -> None:
    study.set_user_attr("text", "any")
    study.enqueue_trial({"x": 0.5})
    study.optimize(objective, n_trials=3)
    again = optuna.load_study(storage=storage, study_name="any")
    assert (again.user_attrs, len(again.trials)) == ({"text": "any"}, 3)
    assert again.best_trial.intermediate_values == {1: 0.5}
    assert optuna.get_all_study_names(storage_of(again)) == ["any"]
    assert storage.executed
    assert storage.outside == []


def test_a_trials_state_is_read_and_written_in_one_transaction(storage: WatchedStorage, study: optuna.Study) -> None:
    trial = study.ask()
    storage.executed.clear()
    storage.set_trial_state_values(id_of(trial), TrialState.COMPLETE, [0.5])
    assert storage.executed[0] == "BEGIN IMMEDIATE"
    assert storage.executed[-1] == "COMMIT"
    assert storage.executed.count("COMMIT") == 1
    assert any(statement.startswith("UPDATE trials") for statement in storage.executed)


def test_id_of_returns_the_id_that_the_storage_uses(storage: WatchedStorage, study: optuna.Study) -> None:
    optuna.create_study(storage=storage, study_name="other").ask()
    trial = study.ask()
    study_id = storage.get_study_id_from_name("any")
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
    assert id_of(trial) == id_of(study.trials[0]) == trial_id != trial.number


def test_was_stopped_is_about_the_last_run_of_a_study(study: optuna.Study) -> None:
    def stop(trial: optuna.Trial) -> float:
        trial.study.stop()
        return 0.0

    study.optimize(stop, n_trials=2)
    assert was_stopped(study)
    study.optimize(objective, n_trials=1)
    assert not was_stopped(study)


def test_enqueued_and_retried_trials_are_recognised(study: optuna.Study) -> None:
    study.enqueue_trial({"x": 0.5})
    study.optimize(objective, n_trials=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        for number in (1, 2):
            RetryHeartbeatStaleTrialCallback()(study, study.trials[number])
        public = [RetryHeartbeatStaleTrialCallback.retry_history(trial) for trial in study.trials]
    assert [is_enqueued(trial) for trial in study.trials] == [True, False, False, False]
    assert [retry_history(trial) for trial in study.trials] == public == [[], [], [1], [1, 2]]


def test_waiting_retries_are_started_before_other_enqueued_trials(study: optuna.Study) -> None:
    start_retries_first(study)
    for x in (0.1, 0.2, 0.3):
        study.enqueue_trial({"x": x})
    study.optimize(objective, n_trials=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        for _ in range(2):
            RetryHeartbeatStaleTrialCallback()(study, study.trials[0])
    study.optimize(objective, n_trials=4)
    started = sorted(study.trials, key=lambda trial: str(trial.datetime_start))
    assert [trial.number for trial in started] == [0, 3, 4, 1, 2]
    assert [trial.params["x"] for trial in started] == [0.1, 0.1, 0.1, 0.2, 0.3]
