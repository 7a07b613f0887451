import os
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from smnas_optuna.recipe.recipe import Recipe
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.search.structural import StructuralSearch
from smnas_optuna.search.studies import open_study
from smnas_optuna.study.patient_storage import PatientStorage
from smnas_optuna.study.process_identity import ProcessIdentity
from smnas_optuna.study.retry import MOST_DEATHS, OwnerWatch, identity_of, interrupted_before, requeue_interrupted
from smnas_optuna.study.storage import open_storage
from smnas_optuna.study.trial_outcome import evaluated_trials
from smnas_optuna.training.server import context, preload

LEASE_SECONDS = 0.5
HERE = ProcessIdentity.current()
ELSEWHERE = str(replace(HERE, boot="another machine"))
ENDED = str(replace(HERE, start=str(int(HERE.start) - 1)))

# They mostly wait, while others keep all cores busy.
pytestmark = pytest.mark.takes_minutes


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(str(tiny_recipe))


@pytest.fixture
def storage(url: str) -> PatientStorage:
    return open_storage(url, lease_seconds=LEASE_SECONDS)


@pytest.fixture
def study(storage: PatientStorage, recipe: Recipe) -> optuna.Study:
    return open_study(storage, StructuralSearch(recipe))


def begin(study: optuna.Study, recipe: Recipe, worker: str) -> optuna.Trial:
    """Start a trial as a worker does."""
    trial = study.ask()
    trial.set_user_attr("architecture", str(recipe.structural.space.suggest(trial)))
    trial.set_user_attr("worker", worker)
    return trial


def begin_and_stop_renewing(
    study: optuna.Study, storage: PatientStorage, recipe: Recipe, worker: str
) -> tuple[optuna.Trial, OwnerWatch]:
    """Start a trial, and wait until its lease has expired and a watch has seen it expired for long enough."""
    trial = begin(study, recipe, worker)
    assert storage.renew_lease(trial._trial_id)
    watch = OwnerWatch(storage)
    assert watch.take_over(study.trials) == []
    while (renewal := storage.last_renewal(trial._trial_id)) is None or renewal.age <= 3 * LEASE_SECONDS:
        time.sleep(0.1)
    assert watch.take_over(study.trials) == []
    time.sleep(3 * LEASE_SECONDS + 0.1)
    return trial, watch


def _start_and_die(url: str, recipe: Recipe, record_owner: bool) -> None:
    """Leave a running trial behind, as a killed process does."""
    study = open_study(open_storage(url), StructuralSearch(recipe))
    if record_owner:
        begin(study, recipe, str(ProcessIdentity.current()))
    else:
        study.ask()
    os._exit(9)


def run_and_kill(url: str, recipe: Recipe, record_owner: bool) -> None:
    preload()
    process = context.Process(target=_start_and_die, args=(url, recipe, record_owner))
    process.start()
    process.join()
    assert process.exitcode == 9


def test_the_trial_of_a_killed_process_fails_and_its_architecture_is_enqueued(url: str, recipe: Recipe) -> None:
    run_and_kill(url, recipe, record_owner=True)
    storage = open_storage(url)
    study = open_study(storage, StructuralSearch(recipe))
    assert OwnerWatch(storage).take_over(study.trials) == [0]
    assert OwnerWatch(storage).take_over(study.trials) == []
    assert requeue_interrupted(study, study.trials) == [0]
    assert requeue_interrupted(study, study.trials) == []
    orphan, again = study.trials
    assert (orphan.state, again.state) == (TrialState.FAIL, TrialState.WAITING)
    assert orphan.user_attrs["outcome"] == "interrupted"
    assert again.user_attrs == {"architecture": orphan.user_attrs["architecture"], "worker_deaths": 1}
    assert str(recipe.structural.space.suggest(study.ask())) == orphan.user_attrs["architecture"]
    assert identity_of(study, 1, interrupted_before(study.trials[1])).first_trial == 0
    assert evaluated_trials(study) == []


def test_a_seed_is_not_lost_when_its_process_is_killed_before_the_owner_is_recorded(
    url: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smnas_optuna.study.retry._OWNER_RECORD_SECONDS", 0.0)
    run_and_kill(url, recipe, record_owner=False)
    storage = open_storage(url)
    study = open_study(storage, StructuralSearch(recipe))
    watch = OwnerWatch(storage)
    assert [watch.take_over(study.trials) for _ in range(2)] == [[], [0]]
    requeue_interrupted(study, study.trials)
    assert str(recipe.structural.space.suggest(study.ask())) == recipe.structural.seeds[0]


def test_a_new_trial_without_an_owner_is_not_taken_over_at_once(storage: PatientStorage, study: optuna.Study) -> None:
    study.ask()
    watch = OwnerWatch(storage)
    assert [watch.take_over(study.trials) for _ in range(3)] == [[], [], []]


def test_a_process_of_this_machine_that_is_alive_keeps_its_trial_when_its_lease_has_expired(
    storage: PatientStorage, study: optuna.Study, recipe: Recipe
) -> None:
    _, watch = begin_and_stop_renewing(study, storage, recipe, str(HERE))
    assert watch.take_over(study.trials) == []
    # With a heartbeat interval, Optuna itself would fail trials without heartbeats whenever a trial starts.
    study.optimize(lambda trial: (0.0, 1.0), n_trials=1)
    assert study.trials[0].state == TrialState.RUNNING


def test_a_process_of_another_machine_loses_its_trial_once_its_lease_has_expired(
    storage: PatientStorage, study: optuna.Study, recipe: Recipe
) -> None:
    trial, watch = begin_and_stop_renewing(study, storage, recipe, ELSEWHERE)
    assert watch.take_over(study.trials) == [0]
    assert not storage.renew_lease(trial._trial_id)
    assert requeue_interrupted(study, study.trials) == [0]


def test_an_owner_that_renews_its_lease_after_an_outage_keeps_its_trial(
    storage: PatientStorage, study: optuna.Study, recipe: Recipe
) -> None:
    trial, watch = begin_and_stop_renewing(study, storage, recipe, ELSEWHERE)
    # The watch would take the trial over now, as after an outage of the database of the same length.
    assert storage.renew_lease(trial._trial_id)
    assert watch.take_over(study.trials) == []
    assert storage.renew_lease(trial._trial_id)


def test_an_outage_of_the_database_does_not_count_as_time_watched(
    storage: PatientStorage, study: optuna.Study, recipe: Recipe
) -> None:
    _, watch = begin_and_stop_renewing(study, storage, recipe, ELSEWHERE)
    storage.note_failure()
    assert watch.take_over(study.trials) == []
    time.sleep(3 * LEASE_SECONDS + 0.1)
    assert watch.take_over(study.trials) == [0]


def test_a_trial_whose_owner_is_recorded_in_a_former_format_is_taken_over_when_its_lease_expires(
    storage: PatientStorage, study: optuna.Study, recipe: Recipe
) -> None:
    _, watch = begin_and_stop_renewing(study, storage, recipe, f"{HERE.host}:{HERE.pid}:1790000000.25")
    assert watch.take_over(study.trials) == [0]


def test_a_trial_that_was_renewed_or_has_ended_meanwhile_is_not_taken_over(
    storage: PatientStorage, study: optuna.Study, recipe: Recipe
) -> None:
    trial = begin(study, recipe, ELSEWHERE)
    storage.renew_lease(trial._trial_id)
    before = storage.last_renewal(trial._trial_id)
    assert before is not None
    while storage.last_renewal(trial._trial_id).moment == before.moment:  # type: ignore[union-attr]
        storage.renew_lease(trial._trial_id)  # SQLite counts whole seconds
    assert not storage.take_over(trial._trial_id, before, {"outcome": "interrupted"})
    last = storage.last_renewal(trial._trial_id)
    study.tell(trial, [0.5, 1.0])
    assert not storage.take_over(trial._trial_id, last, {"outcome": "interrupted"})
    assert study.trials[0].state == TrialState.COMPLETE
    assert "outcome" not in study.trials[0].user_attrs


def test_a_former_owner_cannot_finish_a_trial_that_was_taken_over(
    storage: PatientStorage, study: optuna.Study, recipe: Recipe
) -> None:
    trial = begin(study, recipe, ENDED)
    assert OwnerWatch(storage).take_over(study.trials) == [0]
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.5, 1.0])
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        trial.set_user_attr("map", 0.5)
    assert study.trials[0].state == TrialState.FAIL


def test_an_interrupted_trial_is_retried_once_even_if_the_worker_that_took_it_over_ended(
    storage: PatientStorage, study: optuna.Study, recipe: Recipe
) -> None:
    begin(study, recipe, ENDED)
    OwnerWatch(storage).take_over(study.trials)
    # The worker that took the trial over ends here; the next one depends on the database alone.
    assert requeue_interrupted(study, study.trials) == [0]
    assert requeue_interrupted(study, study.trials) == []
    assert interrupted_before(study.trials[1]) == [0]


def test_a_completed_retry_is_not_enqueued_again(storage: PatientStorage, study: optuna.Study, recipe: Recipe) -> None:
    begin(study, recipe, ENDED)
    OwnerWatch(storage).take_over(study.trials)
    requeue_interrupted(study, study.trials)
    again = begin(study, recipe, str(HERE))
    study.tell(again, [0.5, 1.0])
    assert requeue_interrupted(study, study.trials) == []


def test_an_architecture_whose_workers_keep_dying_is_not_retried_for_ever(
    storage: PatientStorage, study: optuna.Study, recipe: Recipe
) -> None:
    for number in range(MOST_DEATHS + 1):
        assert begin(study, recipe, ENDED).number == number
        assert OwnerWatch(storage).take_over(study.trials) == [number]
        requeue_interrupted(study, study.trials)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * (MOST_DEATHS + 1)
    assert study.trials[-1].user_attrs["outcome"] == "crashed"
    assert study.trials[-1].user_attrs["reason"] == "crashed: its worker has died 6 times"
    assert len(evaluated_trials(study)) == 1


def test_a_user_who_stops_a_search_often_loses_no_architecture(study: optuna.Study, recipe: Recipe) -> None:
    for number in range(MOST_DEATHS + 2):
        trial = begin(study, recipe, str(HERE))
        repeated = interrupted_before(study.trials[trial.number])
        assert identity_of(study, trial.number, repeated).first_trial == 0
        trial.set_user_attr("outcome", "interrupted")
        study.tell(trial, state=TrialState.FAIL)
        assert requeue_interrupted(study, study.trials) == [number]


def test_a_trial_that_was_not_needed_is_enqueued_for_a_run_with_more_trials(
    study: optuna.Study, recipe: Recipe
) -> None:
    trial = begin(study, recipe, str(HERE))
    trial.set_user_attr("outcome", "not_needed")
    study.tell(trial, state=TrialState.FAIL)
    assert requeue_interrupted(study, study.trials) == [0]
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert requeue_interrupted(study, study.trials) == []
    assert len(study.trials) == 2
