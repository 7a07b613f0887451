"""A worker's loop: trial after trial, of one study or of several, together with other workers."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.errors import EvaluationInterrupted, UserError
from smnas_optuna.execution.interruption import Interruption
from smnas_optuna.search.constraints import nearest_violation
from smnas_optuna.search.duration import shortest_seconds
from smnas_optuna.search.objective import EvaluationFailed, TrialContext
from smnas_optuna.study.budget import Deadline, duration_text
from smnas_optuna.study.claim import ClaimLock
from smnas_optuna.study.lease import Lease, LeaseLost
from smnas_optuna.study.optuna_internals import start_retries_first, was_stopped
from smnas_optuna.study.patient_storage import PatientStorage
from smnas_optuna.study.retry import OwnerWatch, interrupted_before, requeue_interrupted
from smnas_optuna.study.trial_outcome import (
    counts_toward_total,
    is_too_large,
    outcome_of,
    record_outcome,
)
from smnas_optuna.training.outcome import Outcome

# So many trials in a row that fail, or that propose what is known or too large, mean that going on is of no use.
_MOST_FAILURES = 5
_MOST_DUPLICATES = 500
_MOST_TOO_LARGE = 200
_MOST_COSTLY = 50
# So many proposals in a row that would end too late mean that the time that is left is not worth more of them.
_MOST_LATE = 5
# How often a worker that waits for the others' last trials looks at them, in seconds.
_LOOK_EVERY = 1.0


class SearchStopped(Exception):
    """A search cannot reach its number of trials."""


class TrialNotNeeded(Exception):
    """A trial was started while another worker started the last one."""


class ObjectiveFunction(Protocol):
    """Evaluates a trial, as Optuna's objective functions do."""

    def __call__(self, trial: optuna.Trial, context: TrialContext, /) -> tuple[float, ...]:
        """Return the values of the objectives.

        Args:
            trial: Just started.
            context: What the trial gets from its worker.
        """


@dataclass(frozen=True)
class StudyProgress:
    """How far a study is.

    Args:
        done: Trials that count toward the total.
        claimed: These together with those under way.
        excluded: Architectures that do not fit into memory, or cost more than a constraint allows.
    """

    done: int = 0
    claimed: int = 0
    excluded: int = 0


class Listener(Protocol):
    """Hears what becomes of a worker's trials."""

    def finished(self, run: "Run", trial: FrozenTrial) -> None:
        """A trial has ended that was needed, and was no duplicate."""

    def requeued(self, run: "Run", number: int) -> None:
        """A trial was found without its worker, and will be repeated."""

    def lost(self, run: "Run", number: int) -> None:
        """Another worker has taken over the trial of this one."""


@dataclass
class Run:
    """A study on its way to its number of trials.

    Args:
        study: The study, in an SQL database.
        storage: That database.
        objective: Evaluates a trial.
        total: Trials that the study shall reach, over all workers.
        size: Architectures that there are; the study ends with those of them that fit into memory at the latest.
        memory: Bytes that training may take here; what took more elsewhere, or in an earlier run, may fit now.
        deadline: When the search has to end; None for when it has its trials.
        progress: How far the study was when its trials were last read.
        problem: Why it cannot reach its total, once it is given up.
    """

    study: optuna.Study
    storage: PatientStorage
    objective: ObjectiveFunction
    total: int
    size: int
    memory: int = 0
    deadline: Deadline | None = None
    progress: StudyProgress = StudyProgress()
    problem: str | None = None
    _exhausted: bool = False
    _costly: int = 0
    _late: int = 0
    _failures: int = 0
    _duplicates: int = 0
    _too_large: int = 0
    # All trials of the study as they were last read: once for each trial that is run, with the lock held.
    _trials: list[FrozenTrial] = field(default_factory=list)
    # Of the trial under way; negative until it has been proposed.
    _number: int = -1
    _ended: FrozenTrial | None = None
    _lock: ClaimLock = field(init=False)
    _owners: OwnerWatch = field(init=False)

    def __post_init__(self) -> None:
        self.total = min(self.total, self.size)
        start_retries_first(self.study)
        self._lock = ClaimLock(self.storage, self.study.study_name)
        self._owners = OwnerWatch(self.storage)

    def look(self) -> StudyProgress:
        """Read the study's trials, and return how far it is."""
        self._trials = self.study.get_trials(deepcopy=False)
        done = sum(map(counts_toward_total, self._trials))
        running = sum(trial.state == TrialState.RUNNING for trial in self._trials)
        excluded = {trial.user_attrs["architecture"] for trial in self._trials if self._is_excluded(trial)}
        self.progress = StudyProgress(done, done + running, len(excluded))
        return self.progress

    @property
    def is_over(self) -> bool:
        """Whether this worker has nothing more to do here, now or later, as far as is known."""
        return self.problem is not None or self._exhausted or self.progress.done >= self._goal

    @property
    def _goal(self) -> int:
        """How many trials the study can reach."""
        return min(self.total, self.size - self.progress.excluded)

    def _is_excluded(self, trial: FrozenTrial) -> bool:
        return is_too_large(trial, self.memory) or outcome_of(trial) is Outcome.TOO_COSTLY

    def advance(self, listener: Listener, interruption: Interruption) -> bool:
        """Run a trial, if one is left that no worker has started, and tell whether there was one.

        Raises:
            KeyboardInterrupt: The worker has to end; its trial will be repeated.
        """
        self._lock.acquire()
        try:
            self.look()
            if self.is_over:
                return False
            if self._owners.take_over(self._trials):
                self.look()
            requeued = requeue_interrupted(self.study, self._trials)
            if requeued:
                self.look()
            for number in requeued:
                if outcome_of(self._trials[number]) is Outcome.INTERRUPTED:
                    listener.requeued(self, number)
            if self.progress.claimed >= self._goal:
                return False
            if self._is_too_late():
                self._exhausted = True
                return False
            with interruption.deferred():
                is_held = self._run_trial(interruption)
        finally:
            self._lock.release()
        if not is_held:
            if self._number >= 0:
                listener.lost(self, self._number)
            return True
        if was_stopped(self.study):
            # Nobody here stops a study, so the sampler has: there is nothing left to propose.
            self._exhausted = True
            return True
        assert self._ended is not None
        self._judge(self._ended)
        if outcome_of(self._ended) not in (Outcome.DUPLICATE, Outcome.NOT_NEEDED):
            listener.finished(self, self._ended)
        return True

    def _is_too_late(self) -> bool:
        """Return whether no further trial is expected to end before the deadline."""
        if self.deadline is None:
            return False
        # What an interrupted trial still needs is known only when it has resumed.
        resumes = any(trial.state == TrialState.WAITING and interrupted_before(trial) for trial in self._trials)
        return self.deadline.left <= 0 or (not resumes and self.deadline.is_missed_by(shortest_seconds(self._trials)))

    def _run_trial(self, interruption: Interruption) -> bool:
        """Let Optuna run a trial, and tell whether this worker had it to its end."""
        self._number = -1
        try:
            self.study.optimize(
                lambda trial: self._evaluate(trial, interruption),
                n_trials=1,
                catch=(EvaluationFailed, TrialNotNeeded),
                callbacks=[self._keep_ended],
            )
        except Exception as error:
            if self._number < 0:
                # Still being proposed; nobody but another worker that takes it over ends such a trial.
                is_lost = isinstance(error, UpdateFinishedTrialError)
            else:
                # Optuna cannot end a trial that another worker has ended, which it says in several ways.
                is_lost = "taken_over_by" in self.study.get_trials(deepcopy=False)[self._number].user_attrs
            if is_lost:
                return False
            raise
        return True

    def _keep_ended(self, _: optuna.Study, trial: FrozenTrial) -> None:
        self._ended = trial

    def _evaluate(self, trial: optuna.Trial, interruption: Interruption) -> tuple[float, ...]:
        self._number = trial.number
        with Lease(self.storage, trial) as lease:

            def check() -> None:
                lease.check()
                interruption.check()

            context = TrialContext(
                self._trials, lambda: self._release_claim(trial), (lease, interruption), check, self.deadline
            )
            try:
                values = self.objective(trial, context)
            except optuna.TrialPruned:
                if "outcome" not in trial.user_attrs:
                    trial.set_user_attr("outcome", Outcome.NOT_NEEDED)
                raise
            except (EvaluationFailed, LeaseLost, UpdateFinishedTrialError):
                raise
            except TrialNotNeeded as error:
                record_outcome(trial, Outcome.NOT_NEEDED, str(error))
                raise
            except (Exception, KeyboardInterrupt) as error:
                # Not the architecture's fault: a later trial shall evaluate it.
                record_outcome(trial, Outcome.INTERRUPTED, f"interrupted: {_text(error)}")
                raise
            if any(map(math.isnan, values)):
                reason = f"an objective is not a number: {values}"
                record_outcome(trial, Outcome.DIVERGED, reason)
                raise EvaluationFailed(reason)
            trial.set_user_attr("outcome", Outcome.COMPLETED)
            return values

    def _release_claim(self, trial: optuna.Trial) -> None:
        """Let the next worker propose; the trial's architecture is known to it now.

        Raises:
            optuna.TrialPruned: Another trial has the architecture.
            TrialNotNeeded: Other workers' trials are enough.
        """
        is_new = self._twin(trial) is None
        if self._lock.release() and is_new:
            return
        # A restart of the server ends the lock early, and another worker may have proposed too. With the lock taken
        # anew, and kept until a trial that ends here has ended, the two decide one after the other who yields.
        self._lock.acquire()
        self.look()
        twin = self._twin(trial)
        if twin is not None:
            does = "evaluates" if twin.state == TrialState.RUNNING else "has evaluated"
            reason = f"duplicate: trial {twin.number} {does} this architecture"
            record_outcome(trial, Outcome.DUPLICATE, reason)
            raise optuna.TrialPruned(reason)
        if self.progress.claimed > self._goal:
            raise TrialNotNeeded(f"trial {trial.number} was not needed any more")
        self._lock.release()

    def _twin(self, trial: optuna.Trial) -> FrozenTrial | None:
        """Return another trial that evaluates, or has evaluated, a trial's architecture, as far as is known."""
        architecture = trial.user_attrs["architecture"]
        for other in self._trials:
            if other.number == trial.number or other.user_attrs.get("architecture") != architecture:
                continue
            is_running = other.state == TrialState.RUNNING
            if is_running or counts_toward_total(other) or self._is_excluded(other):
                return other
        return None

    def _judge(self, trial: FrozenTrial) -> None:
        """Count failures and proposals that come to nothing in a row, and give up where going on makes no sense."""
        outcome = outcome_of(trial)
        self._duplicates = self._duplicates + 1 if outcome is Outcome.DUPLICATE else 0
        if outcome is not Outcome.DUPLICATE:
            self._failures = self._failures + 1 if trial.state == TrialState.FAIL else 0
            self._too_large = self._too_large + 1 if outcome is Outcome.TOO_LARGE else 0
            self._costly = self._costly + 1 if outcome is Outcome.TOO_COSTLY else 0
            self._late = self._late + 1 if outcome is Outcome.TOO_LATE else 0
            self._exhausted |= self._late == _MOST_LATE
        if self._duplicates == _MOST_DUPLICATES:
            self.problem = f"{_MOST_DUPLICATES} proposals in a row were known; {self.progress.done} trials done"
        elif self._too_large == _MOST_TOO_LARGE:
            self.problem = f"{_MOST_TOO_LARGE} proposals in a row did not fit, the last {trial.user_attrs['reason']}"
        elif self._costly == _MOST_COSTLY:
            self.problem = f"{_MOST_COSTLY} proposals in a row cost more than the constraints allow"
        elif self._failures == _MOST_FAILURES:
            self.problem = f"{_MOST_FAILURES} trials in a row failed, the last with {trial.user_attrs.get('reason')}"


def _text(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "its worker was stopped"
    if isinstance(error, EvaluationInterrupted):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def search_all(runs: Sequence[Run], listener: Listener, interruption: Interruption) -> None:
    """Run trials until every study has its number, always of the one that is furthest behind.

    So the fronts of several candidates are lifted side by side, as in SM-NAS. A worker that finds every trial begun
    stays until they have ended, for those of a worker that dies go back to the queue.

    Raises:
        SearchStopped: Runs that could not reach their numbers; the others have.
        UserError: The budget is too small for any trial, or no detector keeps to the constraints.
        KeyboardInterrupt: The worker has to end.
    """
    while left := [run for run in runs if not run.is_over]:
        interruption.check()
        if len(left) > 1:
            for run in left:
                run.look()
            left.sort(key=lambda run: run.progress.claimed)
        if not any(run.advance(listener, interruption) for run in left) and not all(run.is_over for run in left):
            time.sleep(_LOOK_EVERY)
    for run in runs:
        if run.problem is None:
            run.problem = _barrenness(run.study)
        if run.problem is not None:
            _refuse_impossible(run.study, run.deadline)
    problems = [
        f"{run.study.study_name}: {run.problem}" if len(runs) > 1 else run.problem for run in runs if run.problem
    ]
    if problems:
        raise SearchStopped("; ".join(problems))


def _refuse_impossible(study: optuna.Study, deadline: Deadline | None) -> None:
    """Raise UserError if no trial of a study was completed since all cost too much, or would have ended too late."""
    trials = study.get_trials(deepcopy=False)
    if any(trial.state == TrialState.COMPLETE for trial in trials):
        return
    if (nearest := nearest_violation(trials)) is not None:
        raise UserError(f"constraints: no detector keeps to them; {nearest}")
    if deadline is None:
        return
    late = [trial.user_attrs["budget_needed"] for trial in trials if outcome_of(trial) is Outcome.TOO_LATE]
    if late or deadline.left <= 0:
        needed = f"; expected {duration_text(60 * math.ceil(min(late) / 60))} or more" if late else ""
        raise UserError(f"--budget {duration_text(deadline.budget)}: too small for a single trial{needed}")


def _barrenness(study: optuna.Study) -> str | None:
    """Say why no trial of a study that has come to its end is completed; None if one is."""
    trials = study.get_trials(deepcopy=False)
    evaluated = [trial for trial in trials if counts_toward_total(trial)]
    if any(trial.state == TrialState.COMPLETE for trial in evaluated):
        return None
    if evaluated:
        return f"no trial could be completed, the last failed with {evaluated[-1].user_attrs['reason']}"
    too_large = [trial for trial in trials if is_too_large(trial)]
    if too_large:
        return f"no architecture fits into memory, trial {too_large[-1].number} {too_large[-1].user_attrs['reason']}"
    return "no trial could be completed, nothing was proposed"
