"""What became of a study's trials: which count, which are too large, which wait to be repeated."""

import math

import optuna
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.training.outcome import Outcome

# Failures that say something about the architecture.
_FAULTS_OF_ARCHITECTURE = (Outcome.OUT_OF_MEMORY, Outcome.DIVERGED, Outcome.CRASHED, Outcome.TIMED_OUT)
# How reasons began that were recorded before outcomes were; they are never to be extended.
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
    """Return what became of a trial; None while it runs or waits."""
    if not trial.state.is_finished():
        return None
    if trial.state == TrialState.COMPLETE:
        return Outcome.COMPLETED
    recorded = trial.user_attrs.get("outcome")
    if recorded == Outcome.COMPLETED:
        # Its owner wrote this at the very moment in which another worker took the trial over.
        return Outcome.INTERRUPTED
    return Outcome(recorded) if recorded else _former_outcome(trial)


def _former_outcome(trial: FrozenTrial) -> Outcome:
    """Tell the outcome of a trial that was recorded without one."""
    reason = str(trial.user_attrs.get("reason", ""))
    for beginning, outcome in _FORMER_REASONS.items():
        if reason.startswith(beginning):
            return outcome
    if trial.state == TrialState.PRUNED:
        return Outcome.NOT_NEEDED
    return Outcome.CRASHED if reason else Outcome.INTERRUPTED


def record_outcome(trial: optuna.Trial, outcome: Outcome, reason: str) -> None:
    """Record what became of a trial that is about to end, and why, for people."""
    trial.set_user_attr("reason", reason)
    trial.set_user_attr("outcome", outcome)


def counts_toward_total(trial: FrozenTrial) -> bool:
    """Tell whether a trial is one of those that ``--n-trials`` counts.

    These are completed, stopped early, or have failed for a reason of their architecture's own.
    """
    outcome = outcome_of(trial)
    return outcome in (Outcome.COMPLETED, Outcome.STOPPED) or outcome in _FAULTS_OF_ARCHITECTURE


def evaluated_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return a study's trials that count toward its total."""
    return [trial for trial in study.get_trials(deepcopy=False) if counts_toward_total(trial)]


def is_too_large(trial: FrozenTrial, memory: float = 0) -> bool:
    """Tell whether a trial was skipped because training its architecture takes more than ``memory`` bytes."""
    needed = trial.user_attrs.get("memory_gb", math.inf) * 2**30
    return outcome_of(trial) is Outcome.TOO_LARGE and needed > memory
