"""What a worker does: trial after trial, of one study or of several in turn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import optuna
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.objective import DUPLICATE, EvaluationFailed
from smnas_optuna.search import Search
from smnas_optuna.study import evaluated_trials

# So many trials in a row that fail, or that propose what is known, mean that going on is of no use.
_MOST_FAILURES = 5
_MOST_DUPLICATES = 500


class SearchStopped(Exception):
    """A search cannot reach its number of trials."""


@dataclass
class Run:
    """A search on its way to its number of trials.

    Args:
        search: What is searched.
        study: Where it is kept.
        objective: What a trial does.
        total: Trials that the study shall reach; it ends with fewer where there are fewer architectures.
        problem: Why it cannot reach them, once it is given up.
    """

    search: Search
    study: optuna.Study
    objective: Callable[[optuna.Trial], tuple[float, ...]]
    total: int
    problem: str | None = None
    _exhausted: bool = False
    _failures: int = 0
    _duplicates: int = 0

    @property
    def done(self) -> int:
        """Trials that count so far."""
        return len(evaluated_trials(self.study))

    @property
    def progress(self) -> float:
        """Share of its trials that are done, 0 to 1; 1 also where there is nothing more to do."""
        if self.problem or self._exhausted:
            return 1.0
        return min(1.0, self.done / min(self.total, self.search.space.size))

    def advance(self, look: Callable[[FrozenTrial], bool]) -> None:
        """Run trials until ``look``, called after each that was no duplicate, is false or the search has ended."""
        left = False

        def callback(study: optuna.Study, trial: FrozenTrial) -> None:
            nonlocal left
            left = not self._count(trial) or (not self._is_duplicate(trial) and not look(trial))
            if left:
                study.stop()

        self.study.optimize(self.objective, catch=(EvaluationFailed,), callbacks=[callback])
        # Nobody here has stopped the study, so the sampler has: there is nothing left to propose.
        self._exhausted = not left

    def _is_duplicate(self, trial: FrozenTrial) -> bool:
        return str(trial.user_attrs.get("reason", "")).startswith(DUPLICATE)

    def _count(self, trial: FrozenTrial) -> bool:
        """Count failures and duplicates in a row, and tell whether it makes sense to go on."""
        self._duplicates = self._duplicates + 1 if self._is_duplicate(trial) else 0
        if not self._is_duplicate(trial):
            self._failures = self._failures + 1 if trial.state == TrialState.FAIL else 0
        if self._duplicates == _MOST_DUPLICATES:
            self.problem = f"{_MOST_DUPLICATES} proposals in a row were known; {self.done} trials done"
        elif self._failures == _MOST_FAILURES:
            self.problem = f"{_MOST_FAILURES} trials in a row failed, the last with {trial.user_attrs.get('reason')}"
        return self.problem is None


def search_all(runs: Sequence[Run], finished: Callable[[Run, FrozenTrial], None]) -> None:
    """Run trials until every run has its number, always of the run that is furthest behind.

    So the fronts of several candidates are lifted side by side, as in SM-NAS.

    Args:
        runs: Of one stage.
        finished: Called after each trial that was no duplicate.

    Raises:
        SearchStopped: Runs that could not reach their numbers; the others have.
    """
    while (run := min(runs, key=lambda run: run.progress)).progress < 1:
        run.advance(partial(_look, runs, run, finished))
    for run in runs:
        evaluated = evaluated_trials(run.study)
        if run.problem is None and not any(trial.state == TrialState.COMPLETE for trial in evaluated):
            reason = evaluated[-1].user_attrs["reason"] if evaluated else "nothing was proposed"
            run.problem = f"no trial could be completed, the last failed with {reason}"
    problems = [
        f"{run.search.study_name}: {run.problem}" if len(runs) > 1 else run.problem for run in runs if run.problem
    ]
    if problems:
        raise SearchStopped("; ".join(problems))


def _look(runs: Sequence[Run], run: Run, finished: Callable[[Run, FrozenTrial], None], trial: FrozenTrial) -> bool:
    """Tell whether a run should go on at once."""
    finished(run, trial)
    return run is min(runs, key=lambda run: run.progress) and run.progress < 1
