"""A worker: a process that runs trials of a stage's studies, together with others that share the database."""

import contextlib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import optuna
from optuna.trial import FrozenTrial

from smnas_optuna.data.datasets import CheckedDataset, find_again
from smnas_optuna.errors import UserError
from smnas_optuna.execution.interruption import Interruption
from smnas_optuna.execution.loop import Run, SearchStopped, search_all
from smnas_optuna.search.objective import DetectorObjective
from smnas_optuna.search.search import Search
from smnas_optuna.search.studies import open_study
from smnas_optuna.study.claim import ClaimLock
from smnas_optuna.study.patient_storage import PATIENCE
from smnas_optuna.study.retry import retry_too_large
from smnas_optuna.study.storage import open_storage
from smnas_optuna.study.study import agree_on_device
from smnas_optuna.timing.gpus import announce_search, choosing
from smnas_optuna.training.job import Demand, Event, Target
from smnas_optuna.training.process import preload, probe


@dataclass(frozen=True)
class Ready:
    """The worker's device is there, and its trials begin."""

    worker: int
    target: Target


@dataclass(frozen=True)
class Heard:
    """Something has happened in a trial that is under way; ``study`` tells its study, see Search.path."""

    worker: int
    study: str
    trial: int
    architecture: str
    event: Event


@dataclass(frozen=True)
class Finished:
    """A trial has ended.

    Args:
        worker: Number of the worker.
        study: Tells its study, see Search.path.
        trial: The trial as it ended.
        done: Trials of its study that count by now.
        hypervolume: The study's hypervolume in words, as ``Run.hypervolume`` gives it; empty where it has none.
    """

    worker: int
    study: str
    trial: FrozenTrial
    done: int
    hypervolume: str


@dataclass(frozen=True)
class Requeued:
    """A trial of a dead worker was put back into the queue."""

    worker: int
    study: str
    trial: int


@dataclass(frozen=True)
class TakenOver:
    """Another worker has taken over this one's trial, which was not heard for too long."""

    worker: int
    study: str
    trial: int


@dataclass(frozen=True)
class Ended:
    """The worker has nothing more to do, or could not go on.

    Args:
        worker: Its number.
        problem: Why a search has stopped short, if it has.
        mistake: What the user got wrong, if that is why.
        error: The last line of an unexpected error, with which the worker died.
    """

    worker: int
    problem: str | None = None
    mistake: str | None = None
    error: str | None = None


Message = Ready | Heard | Finished | Requeued | TakenOver | Ended
Tell = Callable[[Message], None]


class Order(Protocol):
    """What a worker is told to do; it travels to other processes and machines."""

    @property
    def worker(self) -> int:
        """The worker's number, from 0."""

    def runs(self, tell: Tell) -> dict[str, Run]:
        """Open what is to be run, by name."""


@dataclass(frozen=True)
class SearchOrder:
    """Search the studies of a stage.

    Args:
        worker: The worker's number.
        searches: What to search; their studies exist.
        storage: URL of the database. It is not shown.
        dataset: Checked.
        folder: For configs, logs and checkpoints.
        describe: Called with a trial that is about to end, the mean loss of each epoch, the trial's folder, and the
            folder for files that are shown with the trial. A function of a module, so that it can travel.
        hypervolume: Says a study's hypervolume in words. A function of a module, too.
        n_trials: Trials that each study shall reach, instead of the recipe's.
        sampler: Instead of the recipe's.
        seed: For the sampler; each worker makes its own of it.
        gpus: Names of the GPUs that this worker uses, see ``timing/gpus.py``; None for those that it sees.
        sharing: Workers that use them at the same time, this one among them; each gets as much of the memory.
        workers: Workers on this machine, this one among them.
        mixed_devices: Take times of devices that differ.
    """

    worker: int
    searches: tuple[Search, ...]
    storage: str
    dataset: CheckedDataset
    folder: Path
    describe: Callable[[optuna.Trial, list[float], Path, Path], None]
    hypervolume: Callable[[optuna.Study], str]
    n_trials: int | None = None
    sampler: str | None = None
    seed: int | None = None
    gpus: tuple[str, ...] | None = None
    sharing: int = 1
    workers: int = 1
    mixed_devices: bool = False

    def __repr__(self) -> str:
        """Tell the worker's number only: a URL may hold a password."""
        return f"SearchOrder(worker={self.worker})"

    def runs(self, tell: Tell) -> dict[str, Run]:
        """Open the studies, once the device is seen to be there and to be the studies' own."""
        preload()
        storage = open_storage(self.storage, create=False, patience=PATIENCE)
        first = self.searches[0]
        demand = Demand(first.recipe, first.stage, first.pretrained, self.gpus, self.sharing, self.workers)
        # A worker that was given GPUs chooses none.
        with choosing() if self.gpus is None else contextlib.nullcontext():
            target = probe(demand, self.folder / "output.log")
            for uuid in target.uuids:
                announce_search(uuid, str(self.folder.resolve()))
        dataset = find_again(self.dataset)
        runs = {}
        for search in self.searches:
            seed = None if self.seed is None else self.seed + self.worker
            study = open_study(storage, search, sampler=self.sampler, seed=seed)
            with ClaimLock(storage, study.study_name):
                retry_too_large(study, study.get_trials(deepcopy=False), target.memory)
            device = agree_on_device(study, storage, target.identity, mixed=self.mixed_devices)
            objective = DetectorObjective(
                search,
                dataset,
                device,
                target,
                self.folder / search.path,
                partial(self._hear, tell, search.path),
                partial(self._describe, self.folder / "artifacts"),
            )
            total = self.n_trials or search.trials
            runs[search.path] = Run(
                study, storage, objective, total, search.space.size, target.memory, self.hypervolume
            )
        tell(Ready(self.worker, target))
        return runs

    def _describe(self, artifacts: Path, trial: optuna.Trial, losses: list[float], folder: Path) -> None:
        self.describe(trial, losses, folder, artifacts)

    def _hear(self, tell: Tell, study: str, number: int, architecture: str, event: Event) -> None:
        tell(Heard(self.worker, study, number, architecture, event))


class _Reporter:
    """Turns what happens in a worker's runs into messages."""

    def __init__(self, worker: int, runs: dict[str, Run], tell: Tell) -> None:
        self._worker = worker
        self._names = {id(run): name for name, run in runs.items()}
        self._tell = tell

    def finished(self, run: Run, trial: FrozenTrial) -> None:
        self._tell(Finished(self._worker, self._names[id(run)], trial, run.look().done, run.hypervolume(run.study)))

    def requeued(self, run: Run, number: int) -> None:
        self._tell(Requeued(self._worker, self._names[id(run)], number))

    def lost(self, run: Run, number: int) -> None:
        self._tell(TakenOver(self._worker, self._names[id(run)], number))


def work(order: Order, tell: Tell, interruption: Interruption) -> Ended:
    """Carry out an order, tell what happens meanwhile, and return how it ended.

    An interruption ends the worker in order; its trial will be repeated.
    """
    # What happens is told in messages.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ended = Ended(order.worker)
    try:
        runs = order.runs(tell)
        search_all(list(runs.values()), _Reporter(order.worker, runs, tell), interruption)
    except SearchStopped as stopped:
        return replace(ended, problem=str(stopped))
    except UserError as error:
        return replace(ended, mistake=str(error))
    except KeyboardInterrupt:
        return ended
    except Exception as error:
        traceback.print_exc()
        return replace(ended, error=f"{type(error).__name__}: {' '.join(str(error).split())}")
    return ended


def conclude(ends: Sequence[Ended | None]) -> None:
    """Raise what has to be said of workers that have ended; None is one that died too often.

    Raises:
        UserError: One has found a mistake of the user's.
        SearchStopped: One could not bring its searches to their numbers, or all have died too often.
    """
    for end in ends:
        if end is not None and end.mistake:
            raise UserError(end.mistake)
    problems = sorted({end.problem for end in ends if end is not None and end.problem})
    if problems:
        raise SearchStopped("; ".join(problems))
    if all(end is None for end in ends):
        raise SearchStopped("every worker has died too often")
