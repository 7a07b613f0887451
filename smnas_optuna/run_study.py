"""``python -m smnas_optuna.run_study``: run a search, or go on with one."""

import signal
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import optuna
import typer
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from smnas_optuna.command_line import run_command
from smnas_optuna.errors import UserError
from smnas_optuna.evaluation.datasets import open_dataset
from smnas_optuna.evaluation.job import Candidates, Target
from smnas_optuna.evaluation.process import count, preload, probe
from smnas_optuna.objective import DUPLICATE, EvaluationFailed, StructuralObjective
from smnas_optuna.recipe import DigitsDataset, Recipe, SamplerName
from smnas_optuna.recipe_file import load_recipe
from smnas_optuna.reporting.page import write_report
from smnas_optuna.reporting.progress import SearchProgress, console, front_table
from smnas_optuna.study import (
    DEFAULT_STORAGE,
    evaluated_trials,
    open_storage,
    open_structural_study,
    refuse_other_device,
    requeue_orphans,
)

_SHOWN_ARCHITECTURES = 5
_COCO_CLASSES = 80
# So many trials in a row that fail, or that propose what is known, mean that going on is of no use.
_MOST_FAILURES = 5
_MOST_DUPLICATES = 500


class SearchStopped(Exception):
    """The search cannot reach its number of trials."""


def run_study(
    recipe: Annotated[str, typer.Argument(help="Path of a recipe, or the name of a shipped one.")],
    stage: Annotated[Literal["structural"], typer.Option(help="Which stage to search.")] = "structural",
    storage: Annotated[
        str, typer.Option(envvar="SMNAS_STORAGE", help="Database URL that the study is kept in.")
    ] = DEFAULT_STORAGE,
    n_trials: Annotated[
        int | None, typer.Option(min=1, help="Trials that the study shall reach in total; the recipe's if not given.")
    ] = None,
    sampler: Annotated[
        SamplerName | None, typer.Option(help="Optuna sampler that proposes; the recipe's if not given.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a key of the recipe.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for configs, logs, checkpoints and the report; work_dirs/RECIPE.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be searched, and train nothing.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the sampler.")] = None,
) -> None:
    """Search detectors as RECIPE says; the same command goes on with a search that was ended."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    out = console()
    search = load_recipe(recipe, overrides or ())
    total = n_trials or search.structural.trials
    if dry_run:
        _describe(search, total, sampler or search.structural.sampler, out)
        return
    folder = _writable(output or Path("work_dirs") / search.name)
    database = open_storage(storage)
    dataset = open_dataset(search.dataset)
    preload()
    out.print("data set checked; loading torch and MMDetection")
    target = probe(search, folder / "output.log")
    study = open_structural_study(database, search, sampler=sampler, seed=seed)
    refuse_other_device(study, target.name)
    for number in requeue_orphans(study, database):
        out.print(f"trial {number} was interrupted; its architecture is enqueued again")
    done = len(evaluated_trials(study))
    out.print(f"{study.study_name} on {_device_text(target)}: {done} of {total} trials done")
    try:
        with SearchProgress(out, study, done, total) as progress:
            objective = StructuralObjective(search, dataset, target, folder / stage, progress.listen)
            _search(study, objective, progress, total, search.structural.space.size)
    except KeyboardInterrupt:
        done = len(evaluated_trials(study))
        out.print(f"interrupted with {done} of {total} trials done, all kept; the same command goes on")
        raise
    except SearchStopped as stopped:
        out.print(f"stopped: {stopped}; logs are in {folder / stage}")
        raise typer.Exit(1) from None
    out.print(front_table(study))
    out.print(f"report: {write_report(study, folder)}", soft_wrap=True)


def _search(
    study: optuna.Study, objective: StructuralObjective, progress: SearchProgress, total: int, size: int
) -> None:
    """Run trials until ``total`` of them count, all ``size`` architectures are evaluated, or the sampler stops."""
    enough = min(total, size)
    in_a_row = Counter[str]()

    def look(study: optuna.Study, trial: FrozenTrial) -> None:
        evaluated = evaluated_trials(study)
        reason = trial.user_attrs.get("reason", "")
        if reason.startswith(DUPLICATE):
            in_a_row["duplicates"] += 1
            if in_a_row["duplicates"] == _MOST_DUPLICATES:
                raise SearchStopped(f"{_MOST_DUPLICATES} proposals in a row were known; {len(evaluated)} trials done")
            return
        progress.finish(trial, len(evaluated))
        failures = in_a_row["failures"] + 1 if trial.state == TrialState.FAIL else 0
        if failures == _MOST_FAILURES:
            raise SearchStopped(f"{failures} trials in a row failed, the last with {reason}")
        in_a_row.clear()
        in_a_row["failures"] = failures
        if len(evaluated) >= enough:
            study.stop()

    if len(evaluated_trials(study)) < enough:
        study.optimize(objective, catch=(EvaluationFailed,), callbacks=[look])
    evaluated = evaluated_trials(study)
    if not any(trial.state == TrialState.COMPLETE for trial in evaluated):
        reason = evaluated[-1].user_attrs["reason"] if evaluated else "nothing was proposed"
        raise SearchStopped(f"no trial could be completed, the last failed with {reason}")


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written: {error.strerror}") from None
    return folder.resolve()


def _describe(recipe: Recipe, total: int, sampler: str, out: Console) -> None:
    """Print what a run would do."""
    preload()
    stage, space = recipe.structural, recipe.structural.space
    out.print(f"study {recipe.name}/structural: {space.size:,} architectures")
    known = isinstance(recipe.dataset, DigitsDataset)
    classes = recipe.dataset.classes if isinstance(recipe.dataset, DigitsDataset) else _COCO_CLASSES
    sampled = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    architectures = tuple(space.suggest(sampled.ask()) for _ in range(_SHOWN_ARCHITECTURES))
    with tempfile.TemporaryDirectory() as scratch:
        costs = count(Candidates(architectures, classes, stage.detector), Path(scratch) / "output.log")
    out.print(f"some of them, as detectors of {classes} classes{'' if known else ' (as COCO has)'}:")
    for architecture, cost in zip(architectures, costs, strict=True):
        out.print(f"  {cost.flops / 1e9:8.2f} GFLOPs {cost.params / 1e6:7.2f} M parameters  {architecture}")
    training = stage.training
    out.print(
        f"a run would evaluate {total} of them, {len(stage.seeds)} given seeds first and the others proposed by "
        f"{sampler}: train each for {training.epochs} epochs at batch size {training.batch_size} with weights from "
        f"{training.weights}, then measure {', '.join(stage.objectives)} on {recipe.device.kind}",
        soft_wrap=True,
    )


def _device_text(target: Target) -> str:
    return f"{target.count} x {target.name}" if target.count > 1 else target.name


if __name__ == "__main__":
    run_command(run_study, "run_study")
