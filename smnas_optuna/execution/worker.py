"""A worker: a process that runs trials of a stage's studies, together with others that share the database."""

import contextlib
import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import optuna
from optuna.trial import FrozenTrial

from smnas_optuna.data.datasets import CheckedDataset, on_this_machine
from smnas_optuna.detector.pretrained import Pretrained
from smnas_optuna.errors import UserError
from smnas_optuna.execution.interruption import Interruption
from smnas_optuna.execution.loop import Run, SearchStopped, search_all
from smnas_optuna.search.objective import DetectorObjective
from smnas_optuna.search.search import Search, automatic_weights, required_weights
from smnas_optuna.search.studies import open_study
from smnas_optuna.study.budget import Deadline
from smnas_optuna.study.claim import ClaimLock
from smnas_optuna.study.patient_storage import PATIENCE
from smnas_optuna.study.retry import retry_too_large, retry_too_late
from smnas_optuna.study.storage import open_storage
from smnas_optuna.study.study import agree_on_device
from smnas_optuna.timing.gpus import announce_search, choosing
from smnas_optuna.training.job import DeviceRequest, Event, Target
from smnas_optuna.training.process import probe
from smnas_optuna.training.server import preload


@dataclass(frozen=True)
class Ready:
    """The worker's device is there, and its trials begin."""

    worker: int
    target: Target


@dataclass(frozen=True)
class TrialEvent:
    """An event in a trial that is under way; ``study`` is the path of its search."""

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
        study: Path of the trial's search.
        trial: The trial as it ended.
    """

    worker: int
    study: str
    trial: FrozenTrial


@dataclass(frozen=True)
class Requeued:
    """A trial of a dead worker was put back into the queue."""

    worker: int
    study: str
    trial: int


@dataclass(frozen=True)
class TakenOver:
    """Another worker has taken over this one's trial, since its lease has expired."""

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


Message = Ready | TrialEvent | Finished | Requeued | TakenOver | Ended
Send = Callable[[Message], None]


class Assignment(Protocol):
    """What a worker is to run; it is sent to other processes and machines."""

    @property
    def worker(self) -> int:
        """The worker's number, from 0."""

    def runs(self, send: Send) -> dict[str, Run]:
        """Open the studies, by the paths of their searches; what happens in them is sent."""


@dataclass(frozen=True)
class SearchAssignment:
    """The studies of a stage, to be searched.

    Args:
        worker: The worker's number.
        searches: What to search.
        storage: URL of the database. It is not shown.
        dataset: The checked data set.
        folder: Folder for configs, logs and checkpoints.
        describe: Called with a trial that is about to end, the mean loss of each epoch, the trial's folder, and the
            folder for files that are shown with the trial. A function of a module, so that it can be pickled.
        n_trials: Trials that each study shall reach, instead of the recipe's.
        deadline: When the search has to end, with as many trials as there are until then, or with ``n_trials``; None to
            end it with its trials.
        sampler: Which sampler proposes, instead of the recipe's.
        seed: Seed of the sampler; each worker derives its own from it.
        gpus: Names of the GPUs that this worker uses, see ``timing/gpus.py``; None for those that it sees.
        sharing: Workers that use them at the same time, this one among them; each gets as much of the memory.
        workers: Workers on this machine, this one among them.
        mixed_devices: Take times of devices that differ.
        weights_folder: The user's folder of pre-trained weights, or a single file.
        trained: Weights of a detector that trials start from, where the recipe requires no others; None for none.
    """

    worker: int
    searches: tuple[Search, ...]
    storage: str
    dataset: CheckedDataset
    folder: Path
    describe: Callable[[optuna.Trial, list[float], Path, Path], None]
    n_trials: int | None = None
    deadline: Deadline | None = None
    sampler: str | None = None
    seed: int | None = None
    gpus: tuple[str, ...] | None = None
    sharing: int = 1
    workers: int = 1
    mixed_devices: bool = False
    weights_folder: Path | None = None
    trained: Pretrained | None = None

    def __repr__(self) -> str:
        """Show the worker's number only: a URL may hold a password."""
        return f"SearchAssignment(worker={self.worker})"

    def runs(self, send: Send) -> dict[str, Run]:
        """Open the studies, after the device was found and compared with that of the studies."""
        preload()
        storage = open_storage(self.storage, create=False, patience=PATIENCE)
        first = self.searches[0]
        backbones = tuple(dict.fromkeys(backbone for search in self.searches for backbone in search.backbones))
        automatic = None if self.trained else automatic_weights(first, self.weights_folder)
        request = DeviceRequest(
            first.recipe,
            first.stage,
            required_weights(first),
            automatic,
            backbones,
            gpus=self.gpus,
            sharing=self.sharing,
            workers=self.workers,
        )
        # A worker that was given GPUs chooses none.
        with choosing() if self.gpus is None else contextlib.nullcontext():
            target = probe(request, self.folder / "output.log")
            for uuid in target.uuids:
                announce_search(uuid, str(self.folder.resolve()))
        dataset = on_this_machine(self.dataset)
        runs = {}
        for search in self.searches:
            seed = None if self.seed is None else self.seed + self.worker
            study = open_study(storage, search, sampler=self.sampler, seed=seed)
            with ClaimLock(storage, study.study_name):
                retry_too_large(study, study.get_trials(deepcopy=False), target.memory)
                left = math.inf if self.deadline is None else self.deadline.left
                retry_too_late(study, study.get_trials(deepcopy=False), left)
            device = agree_on_device(study, storage, target.identity, mixed=self.mixed_devices)
            objective = DetectorObjective(
                search,
                dataset,
                device,
                target,
                self.folder / search.path,
                self.trained or (replace(automatic, unreachable=target.unreachable) if automatic else None),
                partial(self._send_event, send, search.path),
                partial(self._describe, self.folder / "artifacts"),
            )
            size = search.space.size
            total = self.n_trials or (search.trials if self.deadline is None else size)
            runs[search.path] = Run(study, storage, objective, total, size, target.memory, self.deadline)
        send(Ready(self.worker, target))
        return runs

    def _describe(self, artifacts: Path, trial: optuna.Trial, losses: list[float], folder: Path) -> None:
        self.describe(trial, losses, folder, artifacts)

    def _send_event(self, send: Send, study: str, number: int, architecture: str, event: Event) -> None:
        send(TrialEvent(self.worker, study, number, architecture, event))


class _Reporter:
    """Sends what becomes of a worker's trials as messages."""

    def __init__(self, worker: int, runs: dict[str, Run], send: Send) -> None:
        self._worker = worker
        self._names = {id(run): name for name, run in runs.items()}
        self._send = send

    def finished(self, run: Run, trial: FrozenTrial) -> None:
        self._send(Finished(self._worker, self._names[id(run)], trial))

    def requeued(self, run: Run, number: int) -> None:
        self._send(Requeued(self._worker, self._names[id(run)], number))

    def lost(self, run: Run, number: int) -> None:
        self._send(TakenOver(self._worker, self._names[id(run)], number))


def work(assignment: Assignment, send: Send, interruption: Interruption) -> Ended:
    """Run the studies of an assignment, send messages meanwhile, and return how it ended.

    An interruption ends the worker cleanly; its trial will be repeated.
    """
    # Messages say what happens.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ended = Ended(assignment.worker)
    try:
        runs = assignment.runs(send)
        search_all(list(runs.values()), _Reporter(assignment.worker, runs, send), interruption)
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
    """Raise why workers have ended short of their goal; None is one that died too often.

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
