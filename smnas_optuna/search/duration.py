"""Predicts how long a trial takes, from the trials before it."""

from collections.abc import Sequence

import numpy as np
from optuna.trial import FrozenTrial, TrialState
from scipy.optimize import nnls

from smnas_optuna.study.retry import interrupted_before

_FEWEST_FOR_A_LINE = 3


def shortest_seconds(trials: Sequence[FrozenTrial]) -> float:
    """Return how long the shortest of a study's completed trials has taken; 0 if none was completed."""
    return min((seconds for seconds, _ in _measured(trials)), default=0.0)


def predicted_seconds(trials: Sequence[FrozenTrial], flops: float) -> float | None:
    """Predict how long a trial takes, from the multiply-adds of its detector; None if no trial was completed.

    A line through the completed trials with neither a negative start nor a negative slope; through one or two, in
    proportion to the multiply-adds of the nearest.

    Args:
        trials: The study's trials.
        flops: Multiply-adds for one image.
    """
    measured = _measured(trials)
    if not measured:
        return None
    if len(measured) < _FEWEST_FOR_A_LINE:
        seconds, known = min(measured, key=lambda trial: abs(trial[1] - flops))
        return seconds * max(1.0, flops / known)
    seconds_of, flops_of = np.array(measured).T
    (start, slope), _ = nnls(np.column_stack([np.ones(len(measured)), flops_of / flops_of.max()]), seconds_of)
    return float(start + slope * flops / flops_of.max())


def seconds_after_training(trials: Sequence[FrozenTrial]) -> float:
    """Return how long completed trials have taken for evaluation and timing, as their median; 0 if there are none."""
    completed = [trial.user_attrs for trial in trials if trial.state == TrialState.COMPLETE]
    seconds = [each.get("evaluation_seconds", 0.0) + each.get("timing_seconds", 0.0) for each in completed]
    return float(np.median(seconds)) if seconds else 0.0


def _measured(trials: Sequence[FrozenTrial]) -> list[tuple[float, float]]:
    """Return seconds and multiply-adds of the completed trials that were not resumed, which take less."""
    return [
        (trial.user_attrs["seconds"], trial.user_attrs["flops"])
        for trial in trials
        if trial.state == TrialState.COMPLETE
        and {"seconds", "flops"} <= trial.user_attrs.keys()
        and not interrupted_before(trial)
    ]
