"""Retries of trials whose worker ended, that were stopped by the user, or that did not fit into memory.

An interrupted trial fails with the outcome ``interrupted``, and a new trial with the same parameters is enqueued. A
worker may end between these two steps, so the second one depends on the database alone: every interrupted trial without
a retry gets one. Hold the study's ClaimLock while calling the functions of this module that write.
"""

import copy
import time
import warnings
from collections.abc import Sequence

import optuna
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.study.optuna_internals import id_of, is_enqueued, retry_history
from smnas_optuna.study.patient_storage import LeaseRenewal, PatientStorage
from smnas_optuna.study.process_identity import ProcessIdentity
from smnas_optuna.study.trial_outcome import counts_toward_total, is_too_large, outcome_of
from smnas_optuna.training.job import TrialIdentity
from smnas_optuna.training.outcome import Outcome

# A trial is not retried once more workers than this have died evaluating its architecture.
MOST_DEATHS = 5

# Renewals that an owner has to miss before its lease expires.
_MISSED_RENEWALS = 3
# Seconds that a trial may run before its owner is recorded, which happens after the sampler's proposal.
_OWNER_RECORD_SECONDS = 30.0


class OwnerWatch:
    """Finds running trials whose owner, the worker that evaluates them, has ended.

    For an owner on this machine the operating system knows whether it is alive, so an owner that is suspended or cannot
    reach the database keeps its trial. Any other owner is taken to have ended if its lease has expired and is not
    renewed while this process watches it for the same period again. Watching is needed because after an outage of the
    database all leases have expired, until the owners that are alive renew them.

    Args:
        storage: The storage that holds the trials.
    """

    def __init__(self, storage: PatientStorage) -> None:
        self._storage = storage
        # For each trial with an expired lease: the last renewal, and when this process first saw it expired.
        self._expired: dict[int, tuple[LeaseRenewal | None, float]] = {}

    def take_over(self, trials: Sequence[FrozenTrial]) -> list[int]:
        """Set the running trials whose owners have ended to FAIL, and return their numbers.

        Args:
            trials: All trials of the study, in their current state.
        """
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        ids = {id_of(trial) for trial in running}
        self._expired = {trial_id: seen for trial_id, seen in self._expired.items() if trial_id in ids}
        return [trial.number for trial in running if self._take_over(trial)]

    def _take_over(self, trial: FrozenTrial) -> bool:
        owner = ProcessIdentity.parse(str(trial.user_attrs.get("worker")))
        is_alive = owner.is_alive() if owner else None
        if is_alive:
            return False
        renewal = self._storage.last_renewal(id_of(trial))
        if is_alive is None and not self._has_expired(id_of(trial), renewal):
            return False
        deaths = trial.user_attrs.get("worker_deaths", 0) + 1
        attributes: dict[str, str | int] = {"worker_deaths": deaths, "taken_over_by": str(ProcessIdentity.current())}
        if deaths <= MOST_DEATHS:
            attributes |= {"outcome": Outcome.INTERRUPTED, "reason": "interrupted: the process that evaluated it ended"}
        else:
            attributes |= {"outcome": Outcome.CRASHED, "reason": f"crashed: its worker has died {deaths} times"}
        return self._storage.take_over(id_of(trial), renewal, attributes)

    def _has_expired(self, trial_id: int, renewal: LeaseRenewal | None) -> bool:
        """Return whether a trial's lease has expired and was not renewed while this process watched."""
        period = _OWNER_RECORD_SECONDS if renewal is None else _MISSED_RENEWALS * self._storage.lease_seconds
        if renewal is not None and renewal.age <= period:
            self._expired.pop(trial_id, None)
            return False
        before, since = self._expired.get(trial_id, (None, 0.0))
        now = time.monotonic()
        if trial_id not in self._expired or (before and before.moment) != (renewal and renewal.moment):
            self._expired[trial_id] = renewal, now
            return False
        # No owner could renew its lease while the database was unreachable.
        return now - max(since, self._storage.last_failure) >= period


def requeue_interrupted(study: optuna.Study, trials: Sequence[FrozenTrial]) -> list[int]:
    """Enqueue a retry for each interrupted trial that has none, and return the numbers of the interrupted trials.

    Trials that were not needed are enqueued again as well, so that a run with a larger ``--n-trials`` evaluates them.
    Their numbers are not returned.

    Args:
        study: The study.
        trials: All trials of the study, in their current state.
    """
    repeated = {number for trial in trials for number in interrupted_before(trial)}
    left = [
        trial
        for trial in trials
        if outcome_of(trial) in (Outcome.INTERRUPTED, Outcome.NOT_NEEDED)
        and trial.state == TrialState.FAIL
        and trial.number not in repeated
        # A trial without parameters was interrupted before its proposal; it has nothing to retry.
        and (trial.params or is_enqueued(trial))
    ]
    for trial in left:
        repeat = copy.deepcopy(trial)
        # All other attributes describe the interrupted attempt, not the architecture.
        repeat.user_attrs = {
            key: value for key, value in trial.user_attrs.items() if key in ("architecture", "worker_deaths")
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            RetryHeartbeatStaleTrialCallback()(study, repeat)
    return [trial.number for trial in left]


def retry_too_large(study: optuna.Study, trials: Sequence[FrozenTrial], memory: int) -> None:
    """Enqueue architectures that were skipped because they did not fit into memory, and fit into ``memory`` bytes.

    Args:
        study: The study.
        trials: All trials of the study, in their current state.
        memory: Bytes that training may take now.
    """
    _enqueue_again(
        study, trials, [trial for trial in trials if is_too_large(trial) and not is_too_large(trial, memory)]
    )


def retry_too_late(study: optuna.Study, trials: Sequence[FrozenTrial], seconds: float) -> None:
    """Enqueue architectures that would have ended after the budget, and that are predicted to take less time than this.

    Args:
        study: The study.
        trials: All trials of the study, in their current state.
        seconds: Seconds that are left of the budget now.
    """
    late = [trial for trial in trials if outcome_of(trial) is Outcome.TOO_LATE]
    _enqueue_again(study, trials, [trial for trial in late if trial.user_attrs.get("seconds_needed", 0.0) <= seconds])


def _enqueue_again(study: optuna.Study, trials: Sequence[FrozenTrial], chosen: Sequence[FrozenTrial]) -> None:
    """Enqueue the architectures of trials once, unless they were evaluated meanwhile or are about to be."""
    pending = (TrialState.RUNNING, TrialState.WAITING)
    taken = {
        trial.user_attrs.get("architecture") for trial in trials if counts_toward_total(trial) or trial.state in pending
    }
    for trial in chosen:
        architecture = trial.user_attrs.get("architecture")
        if architecture not in taken:
            taken.add(architecture)
            study.enqueue_trial(trial.params, user_attrs={"architecture": architecture})


def identity_of_trial(study: optuna.Study, trial: FrozenTrial) -> TrialIdentity:
    """Return what identifies an existing trial, see :func:`identity_of`."""
    return identity_of(study, trial.number, interrupted_before(trial))


def identity_of(study: optuna.Study, number: int, repeated: Sequence[int]) -> TrialIdentity:
    """Return what identifies a trial, also among studies of the same name in other databases.

    Args:
        study: Study of the trial.
        number: Number of the trial.
        repeated: Numbers of the interrupted trials that it repeats, see :func:`interrupted_before`.
    """
    return TrialIdentity(study.user_attrs.get("id", ""), study.study_name, number, (*repeated, number)[0])


def interrupted_before(trial: FrozenTrial) -> list[int]:
    """Return the numbers of the interrupted trials that a trial retries, oldest first."""
    return retry_history(trial)
