"""``python -m smnas_optuna.run_study``: run a search, or go on with one."""

import signal
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import optuna
import typer
from optuna.storages import RDBStorage
from rich.console import Console

from smnas_optuna.candidates import modular_searches
from smnas_optuna.command_line import run_command, writable_folder
from smnas_optuna.dry_run import describe
from smnas_optuna.errors import UserError
from smnas_optuna.evaluation.datasets import CheckedDataset, open_dataset
from smnas_optuna.evaluation.job import Demand, Target
from smnas_optuna.evaluation.process import preload, probe
from smnas_optuna.execution.loop import Run, SearchStopped, search_all
from smnas_optuna.objective import DetectorObjective
from smnas_optuna.recipe import SamplerName, StageName
from smnas_optuna.recipe_file import load_recipe
from smnas_optuna.reporting.page import write_report
from smnas_optuna.reporting.progress import SearchProgress, console
from smnas_optuna.reporting.summary import baseline_text, front_table
from smnas_optuna.search import Search
from smnas_optuna.storage import DEFAULT_STORAGE, open_storage
from smnas_optuna.study import evaluated_trials, open_study, refuse_other_device, requeue_orphans


def run_study(
    recipe: Annotated[str, typer.Argument(help="Path of a recipe, or the name of a shipped one.")],
    stage: Annotated[
        Literal["structural", "modular", "all"], typer.Option(help="Which stage to search.")
    ] = "structural",
    storage: Annotated[
        str, typer.Option(envvar="SMNAS_STORAGE", help="Database URL that the study is kept in.")
    ] = DEFAULT_STORAGE,
    n_trials: Annotated[
        int | None, typer.Option(min=1, help="Trials that each study shall reach in total; the recipe's if not given.")
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Trials of stage one that stage two takes on, instead of picking some."),
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
    chosen = _trial_numbers(candidates)
    search = load_recipe(recipe, overrides or ())
    stages: list[StageName] = ["structural", "modular"] if stage == "all" else [stage]
    if "modular" in stages and search.modular is None:
        raise UserError(f"--stage {stage}: recipe {recipe!r} has no section modular")
    if dry_run:
        for name in stages:
            describe(search, name, n_trials, sampler, out)
        return
    folder = writable_folder(output or Path("work_dirs") / search.name)
    database = open_storage(storage)
    dataset = open_dataset(search.dataset)
    preload()
    out.print("data set checked; loading torch and MMDetection")
    target = probe(Demand(search, pretrained="structural" in stages), folder / "output.log")
    for name in stages:
        searches = [Search(search)] if name == "structural" else modular_searches(database, search, chosen)
        studies = [(each, open_study(database, each, sampler=sampler, seed=seed)) for each in searches]
        _run_stage(database, studies, dataset, target, folder, n_trials, out)


def _run_stage(
    database: RDBStorage,
    studies: list[tuple[Search, optuna.Study]],
    dataset: CheckedDataset,
    target: Target,
    folder: Path,
    n_trials: int | None,
    out: Console,
) -> None:
    """Search studies of one stage side by side, and tell what came of it."""
    for search, study in studies:
        refuse_other_device(study, target.name)
        for number in requeue_orphans(study, database):
            out.print(f"trial {number} was interrupted; its architecture is enqueued again")
        parent = (
            f" takes on trial {search.candidate.trial}, {search.candidate.architecture}" if search.candidate else ""
        )
        standing = f"{len(evaluated_trials(study))} of {n_trials or search.settings.trials} trials done"
        out.print(f"{study.study_name}{parent} on {_device_text(target)}: {standing}", soft_wrap=True)
    total = sum(n_trials or search.settings.trials for search, _ in studies)
    try:
        with SearchProgress(out, _done(studies), total) as progress:
            runs = [
                Run(
                    search,
                    study,
                    DetectorObjective(search, dataset, target, folder / search.path, partial(progress.listen, search)),
                    n_trials or search.settings.trials,
                )
                for search, study in studies
            ]
            search_all(runs, lambda run, trial: progress.finish(run.search, run.study, trial, _done(studies)))
    except KeyboardInterrupt:
        out.print(f"interrupted with {_done(studies)} of {total} trials done, all kept; the same command goes on")
        raise
    except SearchStopped as stopped:
        out.print(f"stopped: {stopped}; logs are in {folder}", soft_wrap=True)
        raise typer.Exit(1) from None
    for search, study in studies:
        out.print(front_table(study))
        gain = baseline_text(search, study) if search.candidate else None
        if gain:
            out.print(gain, soft_wrap=True)
        out.print(f"report: {write_report(study, folder)}", soft_wrap=True)


def _done(studies: list[tuple[Search, optuna.Study]]) -> int:
    return sum(len(evaluated_trials(study)) for _, study in studies)


def _trial_numbers(text: str | None) -> list[int] | None:
    try:
        numbers = None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if numbers is not None and (not numbers or min(numbers) < 0):
        raise UserError(f"--candidates {text!r}: expected numbers of stage one's trials, such as 3,17,20")
    return numbers


def _device_text(target: Target) -> str:
    return f"{target.count} x {target.name}" if target.count > 1 else target.name


if __name__ == "__main__":
    run_command(run_study, "run_study")
