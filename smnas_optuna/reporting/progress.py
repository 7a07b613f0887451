"""What a search tells while it runs: a live view in a terminal, plain lines elsewhere."""

import time
from types import TracebackType

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from smnas_optuna.evaluation.job import Costs, Event
from smnas_optuna.evaluation.job import Progress as Epoch
from smnas_optuna.reporting.pareto import hypervolume, pareto_front

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
        study: The study that runs.
        done: Trials that counted before this run.
        total: Trials that the study shall reach.
    """

    def __init__(self, out: Console, study: optuna.Study, done: int, total: int) -> None:
        self._out = out
        self._study = study
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
        self._trials: TaskID = self._bars.add_task("trials", total=total, completed=done, remark=self._standing())
        self._epochs: TaskID = self._bars.add_task("epochs", total=None, visible=False, remark="")

    def __enter__(self) -> "SearchProgress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def listen(self, trial: optuna.Trial, event: Event) -> None:
        """Take in what happens in the current trial."""
        architecture = trial.user_attrs["architecture"]
        if isinstance(event, Costs):
            costs = f"{event.flops / 1e9:.3g} GFLOPs, {event.params / 1e6:.3g} M parameters"
            self._out.print(f"trial {trial.number}: {architecture} ({costs})")
            self._bars.reset(self._epochs, total=1, remark="")
        elif isinstance(event, Epoch):
            remark = f"loss {event.loss:.3f}"
            self._bars.update(self._epochs, visible=True, completed=event.epoch, total=event.epochs, remark=remark)
            if not self._out.is_terminal:
                self._out.print(f"trial {trial.number}: epoch {event.epoch}/{event.epochs}, {remark}")

    def finish(self, trial: FrozenTrial, done: int) -> None:
        """Take in a trial that has ended.

        Args:
            trial: It.
            done: Trials that count by now.
        """
        self._done = done
        self._bars.update(self._epochs, visible=False)
        self._bars.update(self._trials, completed=done, remark=self._standing())
        if trial.state == TrialState.COMPLETE:
            scores = trial.user_attrs
            outcome = (
                f"mAP {scores['map']:.3f}, AP50 {scores['map_50']:.3f}, "
                f"{scores['latency_ms']:.1f} ± {scores['latency_spread_ms']:.1f} ms"
            )
        else:
            outcome = f"{trial.state.name.lower()}: {trial.user_attrs.get('reason', 'no reason recorded')}"
        self._out.print(f"trial {trial.number}: {outcome}")
        if not self._out.is_terminal:
            self._out.print(f"{done}/{self._total} trials; {self._standing()}")

    def _standing(self) -> str:
        maps = [
            trial.user_attrs["map"]
            for trial in self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
            if "map" in trial.user_attrs
        ]
        words = [f"best mAP {max(maps):.3f}, hypervolume {hypervolume(self._study):.4g}"] if maps else []
        if self._before < self._done < self._total:
            seconds = (time.monotonic() - self._started) / (self._done - self._before) * (self._total - self._done)
            words.append(f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left")
        return ", ".join(words)


def front_table(study: optuna.Study) -> Table:
    """Return the study's Pareto front as a table for the terminal, the most accurate first."""
    table = Table(title=f"Pareto front of {study.study_name}")
    for heading in ("trial", "mAP", "AP50", "ms", "GFLOPs", "params (M)"):
        table.add_column(heading, justify="right")
    table.add_column("architecture")
    front = pareto_front(study)
    for row in front.sort_values("map", ascending=False).to_dict("records"):
        table.add_row(
            str(row["number"]),
            f"{row['map']:.3f}",
            f"{row['map_50']:.3f}",
            f"{row['latency_ms']:.1f} ± {row['latency_spread_ms']:.1f}",
            f"{row['flops'] / 1e9:.3g}",
            f"{row['params'] / 1e6:.3g}",
            str(row["architecture"]),
        )
    return table
