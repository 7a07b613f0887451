"""What a worker does: trial after trial, of one study or of several in turn, together with others."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.claim import ClaimLock
from smnas_optuna.objective import EvaluationFailed
from smnas_optuna.study import counts, evaluated_trials, is_too_large, requeue_dead, sign

_LOOKED_AT = (TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING, TrialState.PRUNED)
# How the reason begins that a trial has of which another evaluates the architecture.
_DUPLICATE = "duplicate"
# So many trials in a row that fail, or that propose what is known or too large, mean that going on is of no use.
_MOST_FAILURES = 5
_MOST_DUPLICATES = 500
_MOST_TOO_LARGE = 200
# How often a worker that waits for the others' last trials looks at them, in seconds.
_LOOK_EVERY = 1.0


class SearchStopped(Exception):
    """A search cannot reach its number of trials."""


class Surplus(Exception):
    """A trial that was begun while another worker began the last one."""


class Objective(Protocol):
    """What a trial does."""

    def __call__(self, trial: optuna.Trial, claimed: Callable[[], None], /) -> tuple[float, ...]:
        """Evaluate.

        Args:
            trial: Just begun.
            claimed: Called once the trial's user attribute ``architecture`` is in the database; it raises where the
                trial is to end there, since another has the architecture or it is not needed any more.
        """


@dataclass(frozen=True)
class Standing:
    """Trials of a study that count, these together with those under way, and architectures too large for memory."""

    done: int
    claimed: int
    too_large: int


class Listener(Protocol):
    """Who is told what happens."""

    def finished(self, run: "Run", trial: FrozenTrial) -> None:
        """A trial has ended that was no duplicate."""

    def requeued(self, run: "Run", number: int) -> None:
        """A trial was found without its worker, and will be gone on with."""


@dataclass
class Run:
    """A study on its way to its number of trials.

    Args:
        study: In an SQL database.
        storage: That database.
        objective: What a trial does.
        total: Trials that the study shall reach, over all workers.
        size: Architectures that there are; the study ends with those of them that fit into memory at the latest.
        memory: Bytes that training may take here; what took more elsewhere, or in an earlier run, may fit now.
        problem: Why it cannot reach them, once it is given up.
    """

    study: optuna.Study
    storage: RDBStorage
    objective: Objective
    total: int
    size: int
    memory: int = 0
    problem: str | None = None
    _exhausted: bool = False
    _failures: int = 0
    _duplicates: int = 0
    _too_large: int = 0
    _number: int = -1
    _lock: ClaimLock = field(init=False)

    def __post_init__(self) -> None:
        self.total = min(self.total, self.size)
        self._lock = ClaimLock(self.storage, self.study.study_name)

    def look(self) -> Standing:
        """Read how far the study is."""
        return self._standing(self.study.get_trials(deepcopy=False, states=_LOOKED_AT))

    def is_over(self, standing: Standing) -> bool:
        """Tell whether this worker has nothing more to do here, now or later."""
        return self.problem is not None or self._exhausted or standing.done >= self._goal(standing)

    def advance(self, listener: "Listener") -> bool:
        """Run a trial, if one is left that no worker has begun, and tell whether there was one."""
        self._lock.acquire()
        try:
            trials = self.study.get_trials(deepcopy=False)
            dead = requeue_dead(self.study, self.storage, trials)
            for number in dead:
                listener.requeued(self, number)
            standing = self.look() if dead else self._standing(trials)
            if standing.claimed >= self._goal(standing):
                return False
            self.study.optimize(self._evaluate, n_trials=1, catch=(EvaluationFailed, Surplus))
        finally:
            self._lock.release()
        if self.study._stop_flag:
            # Nobody here stops a study, so the sampler has: there is nothing left to propose.
            self._exhausted = True
            return True
        trial = self.study.get_trials(deepcopy=False)[self._number]
        self._judge(trial)
        if not _is_duplicate(trial):
            listener.finished(self, trial)
        return True

    def _evaluate(self, trial: optuna.Trial) -> tuple[float, ...]:
        self._number = trial.number
        sign(trial, self.storage)
        return self.objective(trial, lambda: self._claimed(trial))

    def _claimed(self, trial: optuna.Trial) -> None:
        """Let the next worker have its turn; the trial's architecture is known to it now.

        Raises:
            optuna.TrialPruned: Another trial has the architecture.
            Surplus: The trial is not needed.
        """
        is_new = self._twin(trial) is None
        if self._lock.release() and is_new:
            return
        # A restart of the server ends the lock early, and another worker may have had its turn too. With the lock taken
        # anew, and kept until a trial that ends here has ended, the two decide one after the other who yields.
        self._lock.acquire()
        twin = self._twin(trial)
        if twin is not None:
            does = "evaluates" if twin.state == TrialState.RUNNING else "has evaluated"
            reason = f"{_DUPLICATE}: trial {twin.number} {does} this architecture"
            trial.set_user_attr("reason", reason)
            raise optuna.TrialPruned(reason)
        standing = self.look()
        if standing.claimed > self._goal(standing):
            raise Surplus(f"trial {trial.number} was not needed any more")
        self._lock.release()

    def _twin(self, trial: optuna.Trial) -> FrozenTrial | None:
        """Return another trial that evaluates, or has evaluated, a trial's architecture."""
        architecture = trial.user_attrs["architecture"]
        for other in self.study.get_trials(deepcopy=False):
            same = other.number != trial.number and other.user_attrs.get("architecture") == architecture
            if same and (counts(other) or is_too_large(other, self.memory) or other.state == TrialState.RUNNING):
                return other
        return None

    def _standing(self, trials: Sequence[FrozenTrial]) -> Standing:
        done = sum(map(counts, trials))
        running = sum(trial.state == TrialState.RUNNING for trial in trials)
        too_large = {trial.user_attrs["architecture"] for trial in trials if is_too_large(trial, self.memory)}
        return Standing(done, done + running, len(too_large))

    def _goal(self, standing: Standing) -> int:
        """Return how many trials the study can reach."""
        return min(self.total, self.size - standing.too_large)

    def _judge(self, trial: FrozenTrial) -> None:
        """Count failures and proposals that come to nothing in a row, and give up where going on makes no sense."""
        self._duplicates = self._duplicates + 1 if _is_duplicate(trial) else 0
        if not _is_duplicate(trial):
            self._failures = self._failures + 1 if trial.state == TrialState.FAIL else 0
            self._too_large = self._too_large + 1 if is_too_large(trial) else 0
        if self._duplicates == _MOST_DUPLICATES:
            self.problem = f"{_MOST_DUPLICATES} proposals in a row were known; {self.look().done} trials done"
        elif self._too_large == _MOST_TOO_LARGE:
            self.problem = f"{_MOST_TOO_LARGE} proposals in a row did not fit, the last {trial.user_attrs['reason']}"
        elif self._failures == _MOST_FAILURES:
            self.problem = f"{_MOST_FAILURES} trials in a row failed, the last with {trial.user_attrs.get('reason')}"


def search_all(runs: Sequence[Run], listener: Listener) -> None:
    """Run trials until every study has its number, always of the one that is furthest behind.

    So the fronts of several candidates are lifted side by side, as in SM-NAS. A worker that finds every trial begun
    stays until they have ended, for those of a worker that dies go back to the queue.

    Raises:
        SearchStopped: Runs that could not reach their numbers; the others have.
    """
    while True:
        standings = [(standing.claimed / run.total, run) for run in runs if not run.is_over(standing := run.look())]
        if not standings:
            break
        furthest_behind_first = [run for _, run in sorted(standings, key=lambda pair: pair[0])]
        if not any(run.advance(listener) for run in furthest_behind_first):
            time.sleep(_LOOK_EVERY)
    for run in runs:
        if run.problem is None:
            run.problem = _barrenness(run.study)
    problems = [
        f"{run.study.study_name}: {run.problem}" if len(runs) > 1 else run.problem for run in runs if run.problem
    ]
    if problems:
        raise SearchStopped("; ".join(problems))


def _barrenness(study: optuna.Study) -> str | None:
    """Say why no trial of a study that has come to its end is completed; None if one is."""
    evaluated = evaluated_trials(study)
    if any(trial.state == TrialState.COMPLETE for trial in evaluated):
        return None
    if evaluated:
        return f"no trial could be completed, the last failed with {evaluated[-1].user_attrs['reason']}"
    too_large = [trial for trial in study.get_trials(deepcopy=False) if is_too_large(trial)]
    if too_large:
        return f"no architecture fits into memory, trial {too_large[-1].number} {too_large[-1].user_attrs['reason']}"
    return "no trial could be completed, nothing was proposed"


def _is_duplicate(trial: FrozenTrial) -> bool:
    return str(trial.user_attrs.get("reason", "")).startswith(_DUPLICATE)
