from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from smnas_optuna.study.trial_outcome import counts_toward_total, evaluated_trials, is_too_large, outcome_of
from smnas_optuna.training.outcome import Outcome

COMPLETE, FAIL, PRUNED = TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED


def ended(state: TrialState, **attributes: Any) -> optuna.trial.FrozenTrial:
    values = [0.1, 2.0] if state == COMPLETE else None
    return create_trial(state=state, values=values, user_attrs=attributes)


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.COMPLETED])
def test_the_recorded_outcome_decides_whatever_the_reason_is(outcome: Outcome) -> None:
    trial = ended(FAIL, outcome=outcome.value, reason="interrupted: duplicate, would run out of memory")
    assert outcome_of(trial) is outcome
    assert outcome_of(ended(FAIL, outcome=outcome.value, reason="in other words")) is outcome


def test_trained_architectures_and_those_that_cannot_be_trained_count() -> None:
    counted = [outcome.value for outcome in Outcome if counts_toward_total(ended(FAIL, outcome=outcome.value))]
    assert counted == ["stopped", "out_of_memory", "diverged", "crashed", "timed_out"]


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        (COMPLETE, None, Outcome.COMPLETED),
        (PRUNED, "duplicate: trial 3 evaluates this architecture", Outcome.DUPLICATE),
        (PRUNED, "dominated: trial 1 is better even than the best that this can be", Outcome.DOMINATED),
        (PRUNED, "would run out of memory: training on one image takes about 3 GiB", Outcome.TOO_LARGE),
        (FAIL, "out of memory: CUDA out of memory. Tried to allocate", Outcome.OUT_OF_MEMORY),
        (FAIL, "loss became nan in epoch 2 at learning rate 0.1", Outcome.DIVERGED),
        (FAIL, "time limit: over 60 s", Outcome.TIMED_OUT),
        (FAIL, "crashed: the training process got SIGSEGV", Outcome.CRASHED),
        (FAIL, "KeyError: 'x'", Outcome.CRASHED),
        (FAIL, "interrupted: the process that evaluated it ended", Outcome.INTERRUPTED),
        (FAIL, None, Outcome.INTERRUPTED),
        (PRUNED, None, Outcome.NOT_NEEDED),
    ],
)
def test_without_a_recorded_outcome_it_is_read_from_the_reason(
    state: TrialState, reason: str | None, expected: Outcome
) -> None:
    assert outcome_of(ended(state, **({"reason": reason} if reason else {}))) is expected


def test_a_trial_that_was_taken_over_while_it_completed_is_interrupted() -> None:
    assert outcome_of(ended(FAIL, outcome="completed")) is Outcome.INTERRUPTED


def test_a_trial_that_has_not_finished_has_no_outcome() -> None:
    assert outcome_of(create_trial(state=TrialState.WAITING, user_attrs={"outcome": "interrupted"})) is None


def test_evaluated_trials_are_those_that_count() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    outcomes = ["completed", "out_of_memory", "interrupted", "duplicate"]
    for state, outcome in zip([COMPLETE, FAIL, FAIL, PRUNED], outcomes, strict=True):
        study.add_trial(ended(state, outcome=outcome))
    assert [trial.number for trial in evaluated_trials(study)] == [0, 1]


def test_whether_a_trial_is_too_large_depends_on_the_memory() -> None:
    trial = ended(PRUNED, outcome="too_large", memory_gb=2.0)
    assert is_too_large(trial)
    assert is_too_large(trial, memory=2**31 - 1)
    assert not is_too_large(trial, memory=2**31)
    assert is_too_large(ended(PRUNED, outcome="too_large"), memory=2**40)
