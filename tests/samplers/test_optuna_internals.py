"""Fails where Optuna differs from what the sampler's ``optuna_internals.py`` was checked with."""

from pathlib import Path

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from smnas_optuna.samplers.partial_order_pruning.optuna_internals import fixed_params, set_system_attr
from tests.optuna_interface import differences

CHECKED = "set_trial_system_attr(self, trial_id, key, value)"


def test_optuna_has_not_changed() -> None:
    found = "\n".join(differences(BaseStorage, CHECKED))
    assert not found, f"optuna_internals.py was not checked with Optuna {optuna.__version__}:\n{found}"


def test_a_change_of_optuna_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BaseStorage, "set_trial_system_attr", lambda self, trial_id, attributes: None)
    assert differences(BaseStorage, CHECKED) == [
        f"BaseStorage.{CHECKED} is now set_trial_system_attr(self, trial_id, attributes)"
    ]
    monkeypatch.delattr(BaseStorage, "set_trial_system_attr")
    assert differences(BaseStorage, CHECKED) == [f"BaseStorage.{CHECKED} is gone"]


@pytest.mark.parametrize("is_stored", [False, True])
def test_what_a_sampler_stores_with_a_trial_is_seen_by_others(is_stored: bool, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db" if is_stored else optuna.storages.InMemoryStorage()
    optuna.create_study(storage=storage, study_name="other").ask()
    study = optuna.create_study(storage=storage, study_name="any")
    study.ask()
    set_system_attr(study, study.trials[0], "proposal", {"x": 0.5})
    other = optuna.load_study(storage=storage, study_name="any")
    assert other.trials[0].system_attrs["proposal"] == {"x": 0.5}
    assert other.trials[0].state == TrialState.RUNNING


def test_what_an_enqueued_trial_must_have_is_known() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"x": 0.5})
    study.enqueue_trial({})
    study.ask()
    study.ask()
    study.ask()
    assert [fixed_params(trial) for trial in study.trials] == [{"x": 0.5}, {}, {}]
