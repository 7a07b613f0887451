"""Output of a running search: a live view of its workers in a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from smnas_optuna.execution.worker import Finished, Message, Ready, Requeued, TakenOver, TrialEvent
from smnas_optuna.reporting.hypervolume import hypervolume_text
from smnas_optuna.reporting.sparkline import sparkline
from smnas_optuna.reporting.study_results import results_of
from smnas_optuna.search.search import Search
from smnas_optuna.study.budget import Deadline
from smnas_optuna.study.trial_outcome import counts_toward_total, evaluated_trials
from smnas_optuna.training.job import Costs, Memory, Progress, Resumed

_logger = logging.getLogger(__name__)

_PLAIN_WIDTH = 140
_BAR_WIDTH = 20
_SPARKLINE_WIDTH = 12


def console() -> Console:
    """Return the console that commands print on: as wide as the terminal, or without one wide enough for tables."""
    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    # Without markup, brackets in names and reasons are printed unchanged.
    return Console(width=width, highlight=False, markup=False, emoji=False)


@dataclass(frozen=True)
class StudyState:
    """How far a study is.

    Args:
        done: Trials that count by now.
        hypervolume: The study's hypervolume in words; empty where it has none.
    """

    done: int = 0
    hypervolume: str = ""


class StudyReader:
    """Reads how far some studies are; of trials that have ended each is read once.

    Args:
        storage: Where the studies are; those that are not there yet have no trial.
        searches: What they search.
    """

    def __init__(self, storage: RDBStorage, searches: Sequence[Search]) -> None:
        self._storage = storage
        self._names = {search.path: search.study_name for search in searches}
        self._studies: dict[str, optuna.Study] = {}
        self._states = dict.fromkeys(self._names, StudyState())

    def done(self, path: str) -> int:
        """Return how many trials of a study count by now; ``path`` is that of its search."""
        study = self._load(path)
        return len(evaluated_trials(study)) if study else 0

    def read(self, path: str) -> StudyState:
        """Return how far a study is, or was before where it cannot be read now; ``path`` is that of its search."""
        try:
            study = self._load(path)
            if study:
                results = results_of(study)
                done = sum(map(counts_toward_total, results.trials))
                self._states[path] = StudyState(done, hypervolume_text(results))
        except Exception:
            # No search is to end for what is said of it.
            _logger.exception("%s could not be read", self._names[path])
        return self._states[path]

    def _load(self, path: str) -> optuna.Study | None:
        if path not in self._studies:
            try:
                self._studies[path] = optuna.load_study(study_name=self._names[path], storage=self._storage)
            except KeyError:
                return None
        return self._studies[path]


@dataclass
class _WorkerState:
    """The trial that a worker evaluates; empty while it waits."""

    trial: str = ""
    architecture: str = ""
    epoch: int = 0
    epochs: int = 0
    losses: list[float] = field(default_factory=list)


class SearchProgress:
    """Shows the progress of a search; use it as a context manager, and pass it the workers' messages.

    It shows each worker's architecture, epochs and loss, and for the whole search the number of trials done, the best
    mAP, the hypervolume and the time left.

    Args:
        out: Console to print on.
        done: Number of trials done before this run, by the ``path`` of the study's Search.
        totals: Total number of trials of each study, by the same keys; None for any number.
        read: Returns how far a study is, by the same keys.
        deadline: When the search has to end; None for when it has its trials.
        quiet: Print problems only.
    """

    def __init__(
        self,
        out: Console,
        done: dict[str, int],
        totals: Mapping[str, int | None],
        read: Callable[[str], StudyState],
        deadline: Deadline | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        self._out = out
        self._quiet = quiet
        self._before = sum(done.values())
        self._done = dict(done)
        self._total = sum_of(totals.values())
        self._read = read
        self._deadline = deadline
        self._best: dict[str, float] = {}
        self._started = time.monotonic()
        self._workers: dict[int, _WorkerState] = {}
        self._summary = ""
        self._warnings: set[str] = set()
        # Rich takes a pipe for a terminal if FORCE_COLOR is set, which notebooks do.
        self._is_live = out.is_terminal and out.file.isatty() and not quiet
        self._live = Live(get_renderable=self.view, console=out, transient=True)

    def __enter__(self) -> "SearchProgress":
        if self._is_live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def warn(self, line: str) -> None:
        """Print a line about a problem, even if quiet."""
        self._out.print(line, soft_wrap=True)

    def handle(self, message: Message) -> None:
        """Show a worker's message."""
        if isinstance(message, Ready):
            target = message.target
            device = f"{target.count} x {target.name}" if target.count > 1 else target.name
            self._workers[message.worker] = _WorkerState()
            self._print(f"worker {message.worker} is ready on {device}")
            for warning in target.warnings:
                # What one worker finds out, others on its machine find out as well.
                if warning not in self._warnings:
                    self._warnings.add(warning)
                    self.warn(f"worker {message.worker}: {warning}")
        elif isinstance(message, TrialEvent):
            self._handle_event(message)
        elif isinstance(message, Finished):
            self._finish(message)
        elif isinstance(message, Requeued):
            self.warn(f"{_name(message.study, message.trial)} was interrupted and is back in the queue")
        elif isinstance(message, TakenOver):
            self._workers[message.worker] = _WorkerState()
            self.warn(
                f"{_name(message.study, message.trial)} was taken over by another worker, since worker "
                f"{message.worker} could not reach the database for over a minute"
            )

    def view(self) -> RenderableType:
        """Return the live view: a row per worker, and below them the progress of the whole search."""
        workers = Table.grid(padding=(0, 1))
        for number, state in sorted(self._workers.items()):
            workers.add_row(
                f"worker {number}",
                state.trial or "waits",
                ProgressBar(max(state.epochs, 1), state.epoch, width=_BAR_WIDTH),
                f"{state.epoch}/{state.epochs}" if state.epochs else "",
                f"{sparkline(state.losses, _SPARKLINE_WIDTH)} {state.losses[-1]:.3f}" if state.losses else "",
                Text(state.architecture, no_wrap=True, overflow="ellipsis"),
            )
        overall = Table.grid(padding=(0, 1))
        done = sum(self._done.values())
        if self._deadline:
            spent = self._deadline.budget - (self._deadline.end - time.time())
            overall.add_row(
                "budget", ProgressBar(self._deadline.budget, spent, width=_BAR_WIDTH), str(self._deadline), ""
            )
        bar = ProgressBar(self._total, done, width=_BAR_WIDTH) if self._total else ""
        overall.add_row("trials", bar, self._count(done), self._summary)
        return Group(workers, overall)

    def _count(self, done: int) -> str:
        return f"{done}/{self._total}" if self._total else str(done)

    def _print(self, line: str) -> None:
        if not self._quiet:
            self._out.print(line)

    def _handle_event(self, message: TrialEvent) -> None:
        name, event = _name(message.study, message.trial), message.event
        state = self._workers.setdefault(message.worker, _WorkerState())
        if isinstance(event, Costs):
            self._workers[message.worker] = _WorkerState(name, message.architecture)
            costs = f"{event.flops / 1e9:.3g} GFLOPs, {event.params / 1e6:.3g} M parameters"
            self._print(f"{name}: {message.architecture} ({costs})")
        elif isinstance(event, Memory) and event.parts > 1:
            self._print(f"{name}: each batch is split into {event.parts} parts to fit into memory")
        elif isinstance(event, Resumed):
            state.epoch = event.epochs
            self._print(f"{name}: resumes after epoch {event.epochs}, where it was interrupted")
        elif isinstance(event, Progress):
            state.epoch, state.epochs = event.epoch, event.epochs
            state.losses.append(event.loss)
            if not self._is_live:
                self._print(f"{name}: epoch {event.epoch}/{event.epochs}, loss {event.loss:.3f}")

    def _finish(self, message: Finished) -> None:
        trial, study = message.trial, message.study
        state = self._read(study)
        self._done[study] = state.done
        self._workers[message.worker] = _WorkerState()
        scores = trial.user_attrs
        if trial.state == TrialState.COMPLETE:
            self._best[study] = max(scores["map"], self._best.get(study, -1.0))
            outcome = (
                f"mAP {scores['map']:.3f}, AP50 {scores['map_50']:.3f}, "
                f"{scores['latency_ms']:.1f} ± {scores['latency_spread_ms']:.1f} ms"
            )
        else:
            outcome = f"{trial.state.name.lower()}: {scores.get('reason', 'no reason recorded')}"
        done = sum(self._done.values())
        self._summary = self._summary_text(study, state, done)
        line = f"{_name(study, trial.number)}: {outcome}"
        if trial.state == TrialState.FAIL:
            self.warn(line)
        else:
            self._print(line)
        if not self._is_live:
            spent = f"{self._deadline} spent" if self._deadline else ""
            self._print("; ".join(filter(None, [f"{self._count(done)} trials", spent, self._summary])))

    def _summary_text(self, study: str, state: StudyState, done: int) -> str:
        parts = []
        if study in self._best:
            candidate = f" of {_candidate(study)}" if _candidate(study) else ""
            parts.append(f"best mAP{candidate} {self._best[study]:.3f}")
            if state.hypervolume:
                parts.append(f"hypervolume {state.hypervolume}")
        if self._total and self._before < done < self._total:
            seconds = (time.monotonic() - self._started) / (done - self._before) * (self._total - done)
            parts.append(f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left")
        return ", ".join(parts)


def sum_of(totals: Iterable[int | None]) -> int | None:
    """Return the total number of trials of several studies; None if one of them may have any number."""
    known = list(totals)
    return None if None in known else sum(total for total in known if total is not None)


def _candidate(study: str) -> str:
    """Return the candidate in a study's path, such as ``C0`` for ``modular/C0``; empty if it has none."""
    return study.partition("/")[2]


def _name(study: str, number: int) -> str:
    return f"{_candidate(study)} trial {number}".lstrip()
