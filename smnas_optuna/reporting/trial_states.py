"""What became of trials, in a word each: Optuna's states, less what was no failure."""

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
    """Return a word on each of a study's trials; one that another trial repeats says so instead of ``failed``."""
    repeated = {number for trial in trials for number in interrupted_before(trial)}
    return [_word(trial, is_repeated=trial.number in repeated) for trial in trials]


def count_states(trials: Sequence[FrozenTrial]) -> str:
    """Return how many trials there are of each word; the finished ones come first."""
    counts = Counter(state_words(trials))
    order = list(_STATES.values())
    words = sorted(counts, key=lambda word: (order.index(word if word in order else "failed"), word))
    return ", ".join(f"{counts[word]} {word}" for word in words) or "none"


def _word(trial: FrozenTrial, *, is_repeated: bool) -> str:
    outcome = outcome_of(trial)
    # Another program's trial that says nothing has failed, unless it was repeated.
    is_told = is_repeated or not trial.user_attrs.keys().isdisjoint(("outcome", "reason"))
    if trial.state == TrialState.FAIL and outcome in _NO_FAILURES and is_told:
        return _NO_FAILURES[outcome] + (" and repeated" if is_repeated else "")
    return _STATES[trial.state]
