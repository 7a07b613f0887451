"""What a search tells while it runs: a live view in a terminal, plain lines elsewhere."""

import time
from types import TracebackType

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from smnas_optuna.evaluation.job import Costs, Event
from smnas_optuna.evaluation.job import Progress as Epoch
from smnas_optuna.reporting.pareto import hypervolume
from smnas_optuna.search import Search

_PLAIN_WIDTH = 140


def console() -> Console:
    """Return the console that commands print on: as wide as the terminal, or wide enough for a table elsewhere."""
    width = None if Console().is_terminal else _PLAIN_WIDTH
    # Reasons and names are told as they are, whatever brackets they have.
    return Console(width=width, highlight=False, markup=False, emoji=False)


class SearchProgress:
    """Shows trials done of total, the current trial's epoch, best mAP, hypervolume and time left.

    Args:
        out: Where to show it.
        done: Trials that counted before this run, in all studies of the stage.
        total: Trials that these studies shall reach together.
    """

    def __init__(self, out: Console, done: int, total: int) -> None:
        self._out = out
        self._before = self._done = done
        self._total = total
        self._started = time.monotonic()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[remark]}", markup=False),
            console=out,
            disable=not out.is_terminal,
        )
        self._trials: TaskID = self._bars.add_task("trials", total=total, completed=done, remark="")
        self._epochs: TaskID = self._bars.add_task("epochs", total=None, visible=False, remark="")

    def __enter__(self) -> "SearchProgress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def listen(self, search: Search, trial: optuna.Trial, event: Event) -> None:
        """Take in what happens in the current trial."""
        architecture = trial.user_attrs["architecture"]
        if isinstance(event, Costs):
            costs = f"{event.flops / 1e9:.3g} GFLOPs, {event.params / 1e6:.3g} M parameters"
            self._out.print(f"{_name(search, trial)}: {architecture} ({costs})")
            self._bars.reset(self._epochs, total=1, remark="")
        elif isinstance(event, Epoch):
            remark = f"loss {event.loss:.3f}"
            self._bars.update(self._epochs, visible=True, completed=event.epoch, total=event.epochs, remark=remark)
            if not self._out.is_terminal:
                self._out.print(f"{_name(search, trial)}: epoch {event.epoch}/{event.epochs}, {remark}")

    def finish(self, search: Search, study: optuna.Study, trial: FrozenTrial, done: int) -> None:
        """Take in a trial that has ended.

        Args:
            search: What its study searches.
            study: Where it is.
            trial: It.
            done: Trials that count by now, in all studies of the stage.
        """
        self._done = done
        standing = self._standing(search, study)
        self._bars.update(self._epochs, visible=False)
        self._bars.update(self._trials, completed=done, remark=standing)
        if trial.state == TrialState.COMPLETE:
            scores = trial.user_attrs
            outcome = (
                f"mAP {scores['map']:.3f}, AP50 {scores['map_50']:.3f}, "
                f"{scores['latency_ms']:.1f} ± {scores['latency_spread_ms']:.1f} ms"
            )
        else:
            outcome = f"{trial.state.name.lower()}: {trial.user_attrs.get('reason', 'no reason recorded')}"
        self._out.print(f"{_name(search, trial)}: {outcome}")
        if not self._out.is_terminal:
            self._out.print(f"{done}/{self._total} trials; {standing}")

    def _standing(self, search: Search, study: optuna.Study) -> str:
        maps = [
            trial.user_attrs["map"]
            for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
            if "map" in trial.user_attrs
        ]
        words = []
        if maps:
            of = f" of {search.candidate}" if search.candidate else ""
            words.append(f"best mAP{of} {max(maps):.3f}, hypervolume {hypervolume(study):.4g}")
        if self._before < self._done < self._total:
            seconds = (time.monotonic() - self._started) / (self._done - self._before) * (self._total - self._done)
            words.append(f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left")
        return ", ".join(words)


def _name(search: Search, trial: optuna.Trial | FrozenTrial) -> str:
    return f"{search.candidate} trial {trial.number}" if search.candidate else f"trial {trial.number}"
