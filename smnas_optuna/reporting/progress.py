"""What a search tells while it runs: a live view in a terminal, plain lines elsewhere."""

import time
from types import TracebackType

from optuna.trial import TrialState
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from smnas_optuna.evaluation.job import Costs, Resumed
from smnas_optuna.evaluation.job import Progress as Epoch
from smnas_optuna.execution.worker import Finished, Heard, Message, Ready, Requeued

_PLAIN_WIDTH = 140


def console() -> Console:
    """Return the console that commands print on: as wide as the terminal, or wide enough for a table elsewhere."""
    width = None if Console().is_terminal else _PLAIN_WIDTH
    # Reasons and names are told as they are, whatever brackets they have.
    return Console(width=width, highlight=False, markup=False, emoji=False)


class SearchProgress:
    """Shows trials done of total, the current trials' epochs, best mAP, hypervolume and time left.

    Args:
        out: Where to show it.
        done: Trials that counted before this run, by study (see Search.path).
        totals: Trials that each of these studies shall reach.
    """

    def __init__(self, out: Console, done: dict[str, int], totals: dict[str, int]) -> None:
        self._out = out
        self._before = sum(done.values())
        self._done = dict(done)
        self._totals = totals
        self._best: dict[str, float] = {}
        self._started = time.monotonic()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[remark]}", markup=False),
            console=out,
            disable=not out.is_terminal,
        )
        total = sum(totals.values())
        self._trials: TaskID = self._bars.add_task("trials", total=total, completed=self._before, remark="")
        self._epochs: dict[int, TaskID] = {}

    def __enter__(self) -> "SearchProgress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        """Show a line."""
        self._out.print(line, soft_wrap=True)

    def hear(self, message: Message) -> None:
        """Take in what a worker tells."""
        if isinstance(message, Ready):
            target = message.target
            device = f"{target.count} x {target.name}" if target.count > 1 else target.name
            self._out.print(f"worker {message.worker} is ready on {device}")
        elif isinstance(message, Heard):
            self._hear(message)
        elif isinstance(message, Finished):
            self._finish(message)
        elif isinstance(message, Requeued):
            self._out.print(f"{_name(message.study, message.trial)} was interrupted and is back in the queue")

    def _hear(self, message: Heard) -> None:
        name, event = _name(message.study, message.trial), message.event
        bar = self._epochs.get(message.worker)
        if bar is None:
            bar = self._epochs[message.worker] = self._bars.add_task("", total=None, visible=False, remark="")
        if isinstance(event, Costs):
            costs = f"{event.flops / 1e9:.3g} GFLOPs, {event.params / 1e6:.3g} M parameters"
            self._out.print(f"{name}: {message.architecture} ({costs})")
            self._bars.reset(bar, total=1, remark="", description=name)
        elif isinstance(event, Resumed):
            self._out.print(f"{name}: goes on after epoch {event.epochs}, where it was interrupted")
        elif isinstance(event, Epoch):
            remark = f"loss {event.loss:.3f}"
            self._bars.update(bar, visible=True, completed=event.epoch, total=event.epochs, remark=remark)
            if not self._out.is_terminal:
                self._out.print(f"{name}: epoch {event.epoch}/{event.epochs}, {remark}")

    def _finish(self, message: Finished) -> None:
        trial, study = message.trial, message.study
        self._done[study] = max(message.done, self._done.get(study, 0))
        scores = trial.user_attrs
        if trial.state == TrialState.COMPLETE:
            self._best[study] = max(scores["map"], self._best.get(study, -1.0))
            outcome = (
                f"mAP {scores['map']:.3f}, AP50 {scores['map_50']:.3f}, "
                f"{scores['latency_ms']:.1f} ± {scores['latency_spread_ms']:.1f} ms"
            )
        else:
            outcome = f"{trial.state.name.lower()}: {scores.get('reason', 'no reason recorded')}"
        done, total = sum(self._done.values()), sum(self._totals.values())
        standing = self._standing(message, done, total)
        if message.worker in self._epochs:
            self._bars.update(self._epochs[message.worker], visible=False)
        self._bars.update(self._trials, completed=done, remark=standing)
        self._out.print(f"{_name(study, trial.number)}: {outcome}")
        if not self._out.is_terminal:
            self._out.print(f"{done}/{total} trials; {standing}")

    def _standing(self, message: Finished, done: int, total: int) -> str:
        words = []
        if message.study in self._best:
            of = f" of {_candidate(message.study)}" if _candidate(message.study) else ""
            words.append(f"best mAP{of} {self._best[message.study]:.3f}, hypervolume {message.hypervolume:.4g}")
        if self._before < done < total:
            seconds = (time.monotonic() - self._started) / (done - self._before) * (total - done)
            words.append(f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left")
        return ", ".join(words)


def _candidate(study: str) -> str:
    """Return the candidate in a study's path: ``C0`` of ``modular/C0``."""
    return study.partition("/")[2]


def _name(study: str, number: int) -> str:
    return f"{_candidate(study)} trial {number}".lstrip()
