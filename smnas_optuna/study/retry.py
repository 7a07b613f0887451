"""Trials that are repeated: of workers that have ended, that gave up, or that had too little memory.

An interrupted trial fails with the outcome ``interrupted``, and another one with the same parameters is put into the
queue. These are two steps, and a worker may end in between, so the second one is a function of the database alone:
whatever was interrupted and has no successor gets one. Call these functions with the study's ClaimLock held.
"""

import copy
import time
import warnings
from collections.abc import Sequence

import optuna
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.study.optuna_internals import id_of, is_enqueued, retry_history
from smnas_optuna.study.patient_storage import PatientStorage, SignOfLife
from smnas_optuna.study.process_identity import ProcessIdentity
from smnas_optuna.study.trial_outcome import counts_toward_total, is_too_large, outcome_of
from smnas_optuna.training.job import Belonging
from smnas_optuna.training.outcome import Outcome

# A trial whose worker dies more often is not repeated.
MOST_DEATHS = 5

# Renewals that an owner has to miss before its lease has expired.
_MISSED_RENEWALS = 3
# How long a trial may run without an owner's signature, which follows its proposal, in seconds.
_SIGNING_SECONDS = 30.0


class OwnerWatch:
    """Finds running trials whose owners have ended.

    Whether a process of this machine is alive is asked of the operating system, so one that is suspended, or that the
    database has not heard for a while, keeps its trial. Any other owner has ended if its lease has expired and is not
    renewed while this process watches for as long again: after an outage of the database all leases have expired, and
    all owners that are alive renew theirs.

    Args:
        storage: The database that the trials are in.
    """

    def __init__(self, storage: PatientStorage) -> None:
        self._storage = storage
        # For each trial that may have lost its owner: the last sign of life, and when it was first seen expired.
        self._expired: dict[int, tuple[SignOfLife | None, float]] = {}

    def take_over(self, trials: Sequence[FrozenTrial]) -> list[int]:
        """Fail the running trials whose owners have ended, and return their numbers.

        Args:
            trials: All trials of the study, as they are now.
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
        sign = self._storage.sign_of_life(id_of(trial))
        if is_alive is None and not self._has_expired(id_of(trial), sign):
            return False
        deaths = trial.user_attrs.get("worker_deaths", 0) + 1
        attributes: dict[str, str | int] = {"worker_deaths": deaths, "taken_over_by": str(ProcessIdentity.current())}
        if deaths <= MOST_DEATHS:
            attributes |= {"outcome": Outcome.INTERRUPTED, "reason": "interrupted: the process that evaluated it ended"}
        else:
            attributes |= {"outcome": Outcome.CRASHED, "reason": f"crashed: its worker has died {deaths} times"}
        return self._storage.take_over(id_of(trial), sign, attributes)

    def _has_expired(self, trial_id: int, sign: SignOfLife | None) -> bool:
        """Tell whether a trial's lease has expired and was not renewed while this process watched."""
        period = _SIGNING_SECONDS if sign is None else _MISSED_RENEWALS * self._storage.lease_seconds
        if sign is not None and sign.age <= period:
            self._expired.pop(trial_id, None)
            return False
        before, since = self._expired.get(trial_id, (None, 0.0))
        now = time.monotonic()
        if trial_id not in self._expired or (before and before.moment) != (sign and sign.moment):
            self._expired[trial_id] = sign, now
            return False
        # While the database was away nobody could renew.
        return now - max(since, self._storage.last_failure) >= period


def requeue_interrupted(study: optuna.Study, trials: Sequence[FrozenTrial]) -> list[int]:
    """Put what was interrupted, and is not repeated yet, back into the queue, and return the trials' numbers.

    What was not needed is put there too, for a run that wants more trials.

    Args:
        study: The study.
        trials: All of its trials, as they are now.
    """
    repeated = {number for trial in trials for number in interrupted_before(trial)}
    left = [
        trial
        for trial in trials
        if outcome_of(trial) in (Outcome.INTERRUPTED, Outcome.NOT_NEEDED)
        and trial.state == TrialState.FAIL
        and trial.number not in repeated
        # Of a trial that was never told what to evaluate there is nothing to repeat.
        and (trial.params or is_enqueued(trial))
    ]
    for trial in left:
        repeat = copy.deepcopy(trial)
        # What is known of the architecture; everything else is about the attempt.
        repeat.user_attrs = {
            key: value for key, value in trial.user_attrs.items() if key in ("architecture", "worker_deaths")
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            RetryHeartbeatStaleTrialCallback()(study, repeat)
    return [trial.number for trial in left]


def retry_too_large(study: optuna.Study, trials: Sequence[FrozenTrial], memory: int) -> None:
    """Put back into the queue what was skipped for want of memory and fits into ``memory`` bytes."""
    pending = (TrialState.RUNNING, TrialState.WAITING)
    taken = {
        trial.user_attrs.get("architecture") for trial in trials if counts_toward_total(trial) or trial.state in pending
    }
    for trial in trials:
        architecture = trial.user_attrs.get("architecture")
        if is_too_large(trial) and not is_too_large(trial, memory) and architecture not in taken:
            taken.add(architecture)
            study.enqueue_trial(trial.params, user_attrs={"architecture": architecture})


def belonging_of(study: optuna.Study, number: int, repeated: Sequence[int]) -> Belonging:
    """Return what tells a trial from every other one, also of studies of the same name in other databases.

    Args:
        study: The trial's.
        number: The trial's.
        repeated: Numbers of the interrupted trials that it repeats, see :func:`interrupted_before`.
    """
    return Belonging(study.user_attrs.get("id", ""), study.study_name, number, (*repeated, number)[0])


def interrupted_before(trial: FrozenTrial) -> list[int]:
    """Return the numbers of the interrupted trials that a trial repeats, oldest first."""
    return retry_history(trial)
