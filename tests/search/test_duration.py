"""How long trials take is predicted from those before."""

from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.search.duration import predicted_seconds, seconds_after_training, shortest_seconds


def trial(seconds: float, flops: float, state: TrialState = TrialState.COMPLETE, **system: Any) -> FrozenTrial:
    values = [0.5] if state == TrialState.COMPLETE else None
    attributes = {"seconds": seconds, "flops": flops, "evaluation_seconds": 2.0, "timing_seconds": seconds / 10}
    return optuna.trial.create_trial(state=state, values=values, user_attrs=attributes, system_attrs=system)


def test_without_completed_trials_nothing_is_predicted() -> None:
    failed = [trial(10, 1e9, TrialState.FAIL)]
    assert predicted_seconds(failed, 1e9) is None
    assert shortest_seconds(failed) == 0
    assert seconds_after_training(failed) == 0


def test_one_trial_is_scaled_up_but_not_down() -> None:
    assert predicted_seconds([trial(10, 1e9)], 3e9) == 30
    assert predicted_seconds([trial(10, 1e9)], 1e8) == 10


def test_three_trials_give_a_line_that_neither_falls_nor_starts_below_zero() -> None:
    assert predicted_seconds([trial(5 + flops, flops) for flops in (1, 2, 4)], 10) == pytest.approx(15)
    assert predicted_seconds([trial(10 - flops, flops) for flops in (1, 2, 4)], 10) == pytest.approx(23 / 3)
    assert predicted_seconds([trial(flops**2, flops) for flops in (1, 2, 4)], 0.1) >= 0  # type: ignore[operator]


def test_a_resumed_trial_says_nothing_about_a_whole_one() -> None:
    trials = [trial(10, 1e9), trial(1, 1e9, retry_history=[0])]
    assert predicted_seconds(trials, 1e9) == 10
    assert shortest_seconds(trials) == 10
    assert seconds_after_training(trials) == pytest.approx(2.55)
