"""States of trials for people: Optuna's states, with interrupted and unneeded trials distinguished from failures."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.study.retry import interrupted_before
from smnas_optuna.study.trial_outcome import outcome_of
from smnas_optuna.training.outcome import Outcome

_NO_FAILURES: Final = {Outcome.INTERRUPTED: "interrupted", Outcome.NOT_NEEDED: "not needed"}
_STATES: Final = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def state_words(trials: Sequence[FrozenTrial]) -> list[str]:
    """Return the state of each trial of a study, such as ``finished``, ``failed`` or ``interrupted and repeated``."""
    repeated = {number for trial in trials for number in interrupted_before(trial)}
    return [_word(trial, is_repeated=trial.number in repeated) for trial in trials]


def count_states(trials: Sequence[FrozenTrial]) -> str:
    """Return the number of trials in each state, such as ``12 finished, 1 failed``; ``none`` without trials."""
    counts = Counter(state_words(trials))
    order = list(_STATES.values())
    words = sorted(counts, key=lambda word: (order.index(word if word in order else "failed"), word))
    return ", ".join(f"{counts[word]} {word}" for word in words) or "none"


def _word(trial: FrozenTrial, *, is_repeated: bool) -> str:
    outcome = outcome_of(trial)
    # A failed trial of another program has neither attribute; it counts as interrupted only if it was retried.
    has_outcome = is_repeated or not trial.user_attrs.keys().isdisjoint(("outcome", "reason"))
    if trial.state == TrialState.FAIL and outcome in _NO_FAILURES and has_outcome:
        return _NO_FAILURES[outcome] + (" and repeated" if is_repeated else "")
    return _STATES[trial.state]
