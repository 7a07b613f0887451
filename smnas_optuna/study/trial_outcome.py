"""Outcomes of a study's trials: how each ended, and whether it counts toward ``--n-trials``."""

import math

import optuna
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.training.outcome import Outcome

# Failures that the architecture caused.
_FAULTS_OF_ARCHITECTURE = (Outcome.OUT_OF_MEMORY, Outcome.DIVERGED, Outcome.CRASHED, Outcome.TIMED_OUT)
# First words of the reasons of trials that were recorded before outcomes were. Do not extend: new trials have outcomes.
_FORMER_REASONS = {
    "duplicate": Outcome.DUPLICATE,
    "dominated": Outcome.DOMINATED,
    "would run out of memory": Outcome.TOO_LARGE,
    "out of memory": Outcome.OUT_OF_MEMORY,
    "loss became": Outcome.DIVERGED,
    "time limit": Outcome.TIMED_OUT,
    "interrupted": Outcome.INTERRUPTED,
}


def outcome_of(trial: FrozenTrial) -> Outcome | None:
    """Return the outcome of a trial; None while it is running or waiting."""
    if not trial.state.is_finished():
        return None
    if trial.state == TrialState.COMPLETE:
        return Outcome.COMPLETED
    recorded = trial.user_attrs.get("outcome")
    if recorded == Outcome.COMPLETED:
        # Its owner recorded this outcome, but another worker took the trial over before it was complete.
        return Outcome.INTERRUPTED
    return Outcome(recorded) if recorded else _former_outcome(trial)


def _former_outcome(trial: FrozenTrial) -> Outcome:
    """Return the outcome of a trial that was recorded before outcomes were."""
    reason = str(trial.user_attrs.get("reason", ""))
    for beginning, outcome in _FORMER_REASONS.items():
        if reason.startswith(beginning):
            return outcome
    if trial.state == TrialState.PRUNED:
        return Outcome.NOT_NEEDED
    return Outcome.CRASHED if reason else Outcome.INTERRUPTED


def record_outcome(trial: optuna.Trial, outcome: Outcome, reason: str) -> None:
    """Record the outcome of a trial that is about to end.

    Args:
        trial: The trial.
        outcome: What code decides by.
        reason: One line for people to read.
    """
    trial.set_user_attr("reason", reason)
    trial.set_user_attr("outcome", outcome)


def counts_toward_total(trial: FrozenTrial) -> bool:
    """Return whether ``--n-trials`` counts a trial.

    It counts trials that were completed or stopped early, and failures that the architecture caused.
    """
    outcome = outcome_of(trial)
    return outcome in (Outcome.COMPLETED, Outcome.STOPPED) or outcome in _FAULTS_OF_ARCHITECTURE


def evaluated_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials of a study that count toward ``--n-trials``."""
    return [trial for trial in study.get_trials(deepcopy=False) if counts_toward_total(trial)]


def is_too_large(trial: FrozenTrial, memory: float = 0) -> bool:
    """Return whether a trial was skipped because training its architecture needs more than ``memory`` bytes."""
    needed = trial.user_attrs.get("memory_gb", math.inf) * 2**30
    return outcome_of(trial) is Outcome.TOO_LARGE and needed > memory
