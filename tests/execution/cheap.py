"""Workers with an objective that costs nothing but time: everything about a search is real, except for training."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

import optuna
import psutil
from optuna.trial import TrialState

from smnas_optuna.errors import UserError
from smnas_optuna.execution.loop import Run
from smnas_optuna.execution.worker import Send
from smnas_optuna.samplers import create_sampler
from smnas_optuna.search.objective import TrialContext
from smnas_optuna.study.patient_storage import PATIENCE
from smnas_optuna.study.storage import open_storage
from smnas_optuna.study.trial_outcome import counts_toward_total

SIZE = 8 * 8 * 8 * 3


def suggest(trial: Any) -> tuple[int, int, int, str]:
    """Choose depths of three stages and a kind of block."""
    depths = [trial.suggest_int(f"depth{i}", 1, 8) for i in range(3)]
    return depths[0], depths[1], depths[2], trial.suggest_categorical("block", ["basic", "bottleneck", "inverted"])


def order(architecture: tuple[int, int, int, str]) -> tuple[str, tuple[int, ...]]:
    """Deeper is bigger, within a kind of block."""
    return architecture[3], architecture[:3]


@dataclass(frozen=True)
class CheapObjective:
    """Sleeps, and returns an accuracy that grows with depth and a cost that grows faster."""

    seconds: float

    def __call__(self, trial: optuna.Trial, context: TrialContext) -> tuple[float, float]:
        architecture = suggest(trial)
        trial.set_user_attr("architecture", str(architecture))
        context.release_claim()
        trial.set_user_attr("is_training", True)
        connection.wait(list(context.ends), timeout=self.seconds)  # type: ignore[arg-type]  # all have a fileno
        context.check()
        a, b, c, block = architecture
        bonus = {"basic": 0.0, "bottleneck": 0.1, "inverted": 0.05}[block]
        trial.set_user_attr("map", bonus)
        return 1.0 - 1.0 / (a + 1.3 * b + 0.9 * c) + bonus, float(a * a + b * b + c * c) * (1 + bonus)


@dataclass(frozen=True)
class CheapAssignment:
    """Bring the study ``cheap`` to ``total`` trials."""

    worker: int
    url: str
    total: int
    seconds: float
    sampler: str = "pop"
    lease_seconds: float = 1.0

    def runs(self, send: Send) -> dict[str, Run]:
        storage = open_storage(self.url, create=False, lease_seconds=self.lease_seconds, patience=PATIENCE)
        sampler = create_sampler(self.sampler, self.worker, suggest, order, exclusive=True)
        study = optuna.load_study(study_name="cheap", storage=storage, sampler=sampler)
        return {"cheap": Run(study, storage, CheapObjective(self.seconds), self.total, SIZE)}


@dataclass(frozen=True)
class MistakenAssignment:
    """End at once with a mistake of the user's, of so many letters."""

    worker: int
    letters: int

    def runs(self, send: Send) -> dict[str, Run]:
        raise UserError(self.letters * "x")


def create_cheap_study(url: str) -> None:
    """Create the tables and the study."""
    optuna.create_study(study_name="cheap", storage=open_storage(url), directions=["maximize", "minimize"])


def suspend_in_training(url: str, worker: str, processes: Sequence[psutil.Process]) -> None:
    """Suspend processes while a worker trains: not while it holds the lock of those that propose.

    Args:
        url: The database.
        worker: How the worker signs, or how that begins.
        processes: The worker's, and what else is to be suspended.
    """
    storage = open_storage(url, create=False)

    def is_training() -> bool:
        trials = optuna.load_study(study_name="cheap", storage=storage).get_trials(states=[TrialState.RUNNING])
        return any(
            trial.user_attrs.get("is_training") and trial.user_attrs["worker"].startswith(worker) for trial in trials
        )

    while True:
        while not is_training():
            time.sleep(0.05)
        for process in processes:
            process.suspend()
        if is_training():
            return
        for process in processes:
            process.resume()


def check(url: str, total: int) -> optuna.Study:
    """Make sure that the study has so many trials that count, of as many architectures, and none left running."""
    study = optuna.load_study(study_name="cheap", storage=open_storage(url, create=False))
    trials = study.trials
    counted = [trial for trial in trials if counts_toward_total(trial)]
    assert len(counted) == total
    assert not [trial for trial in trials if trial.state == TrialState.RUNNING]
    architectures = [trial.user_attrs["architecture"] for trial in counted]
    assert len(set(architectures)) == total
    return study
