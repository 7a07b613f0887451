import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from smnas_optuna.reporting.trial_states import count_states, state_words
from tests.reporting.synthetic_study import finished


def failed(**attributes: str) -> FrozenTrial:
    return create_trial(state=TrialState.FAIL, user_attrs=attributes)


@pytest.mark.parametrize(
    ("attributes", "word", "repeated"),
    [
        ({"outcome": "diverged"}, "failed", "failed"),
        ({"reason": "out of memory in epoch 1"}, "failed", "failed"),
        ({"outcome": "interrupted"}, "interrupted", "interrupted and repeated"),
        ({"reason": "interrupted: its worker was stopped"}, "interrupted", "interrupted and repeated"),
        ({"outcome": "not_needed"}, "not needed", "not needed and repeated"),
        # Failures of other programs, and those that Optuna itself retries, have no attributes.
        ({}, "failed", "interrupted and repeated"),
    ],
)
def test_interrupted_and_repeated_trials_are_not_called_failed(
    attributes: dict[str, str], word: str, repeated: str
) -> None:
    trials = [failed(**attributes)]
    for number, trial in enumerate(trials):
        trial.number = number
    assert state_words(trials) == [word]
    repeat = create_trial(state=TrialState.WAITING, system_attrs={"retry_history": [0]})
    assert state_words([*trials, repeat]) == [repeated, "waiting"]


def test_trials_are_counted_with_the_finished_ones_first() -> None:
    running, pruned = create_trial(state=TrialState.RUNNING), create_trial(state=TrialState.PRUNED)
    trials = [running, failed(outcome="interrupted"), pruned, failed(outcome="crashed"), finished(0.3), finished(0.4)]
    assert count_states(trials) == "2 finished, 1 pruned, 1 failed, 1 interrupted, 1 running"
    assert count_states([]) == "none"
