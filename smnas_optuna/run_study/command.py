"""The command line of ``run_study``: its options, and which of them do not go together."""

import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import optuna
import typer

from smnas_optuna.command_line import DEFAULT_STORAGE, writable_folder
from smnas_optuna.data.folder.recognition import is_data_folder
from smnas_optuna.errors import UserError
from smnas_optuna.recipe.recipe import Recipe, SamplerName, StageName
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.recipe.settings import FinalTraining
from smnas_optuna.study.budget import parse_duration
from smnas_optuna.training.server import preload

# What units of times and of numbers of parameters stand for.
_MILLISECONDS: Final = {"": 1.0, "ms": 1.0, "s": 1000.0}
_COUNTS: Final = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
# Seconds of a search on a data folder with neither a budget nor a number of trials.
_DEFAULT_BUDGET: Final = 6 * 3600.0


@dataclass(frozen=True)
class Options:
    """A search as its user has asked for it.

    Args:
        recipe: What to search.
        stages: Which stages of it, in their order.
        storage: Database URL.
        n_trials: Trials that each study shall reach; None for the recipe's number, or with a budget for any number.
        budget: Wall time in seconds that the search may take, over all runs; None for no limit.
        final: What follows stage one; None for nothing, or if stage one is not searched.
        started: When this command started, in seconds since the epoch.
        candidates: Trials of stage one that stage two refines; None to pick some of its front.
        sources: What the stage ``transfer`` trains, besides the recipe's baselines.
        sampler: Instead of the recipe's; None for the recipe's.
        output: Folder for what the search writes; None for ``work_dirs/RECIPE``.
        workers: Number of workers; None for one for each GPU.
        launcher: Where the workers run, ``local`` or ``ray``.
        ray_address: Address of the Ray cluster; None to start one on this machine.
        mixed_devices: Mix times of devices that differ.
        weights_folder: Folder with pre-trained weights, or a single file; None for none.
        quiet: Print only problems, and where the report is.
        seed: Seed of the sampler.
    """

    recipe: Recipe
    stages: tuple[StageName, ...]
    storage: str
    n_trials: int | None
    budget: float | None
    final: FinalTraining | None
    started: float
    candidates: tuple[int, ...] | None
    sources: tuple[str, ...]
    sampler: SamplerName | None
    output: Path | None
    workers: int | None
    launcher: Literal["local", "ray"]
    ray_address: str | None
    mixed_devices: bool
    weights_folder: Path | None
    quiet: bool
    seed: int | None


def run_study(
    recipe: Annotated[
        str,
        typer.Argument(
            help="Folder with images and boxes, or its data.yaml, for which a search is planned; path of a recipe; or "
            "the name of a shipped one."
        ),
    ],
    stage: Annotated[
        Literal["structural", "modular", "all", "transfer"],
        typer.Option(
            help="Stage to search; all runs structural and modular, transfer trains the detectors that --from names."
        ),
    ] = "structural",
    storage: Annotated[
        str,
        typer.Option(envvar="SMNAS_STORAGE", help="URL of the database that keeps the studies, or @FILE with the URL."),
    ] = DEFAULT_STORAGE,
    n_trials: Annotated[
        int | None,
        typer.Option(
            min=1, help="Total number of trials of each study, over all runs and workers; by default the recipe's."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="90m|6h|2d",
            help="Wall time of the search, over all runs and workers, instead of a number of trials or beside it; 6h "
            "for a data folder if neither is given.",
        ),
    ] = None,
    max_latency: Annotated[
        str | None, typer.Option(metavar="15ms", help="Longest inference time that a detector may have.")
    ] = None,
    max_params: Annotated[
        str | None, typer.Option(metavar="10M", help="Largest number of parameters that a detector may have.")
    ] = None,
    min_map: Annotated[
        float | None, typer.Option(help="Smallest mAP, 0 to 1, that a detector must have to be on the front.")
    ] = None,
    no_final: Annotated[
        bool,
        typer.Option("--no-final", help="Do not train the recommended detector to the end, nor save it as best/."),
    ] = False,
    candidates: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...", help="Trials of stage one that stage two refines; by default a choice from its front."
        ),
    ] = None,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="STUDY:TRIAL|best|front",
            help="Detectors to train on the recipe's data: trials of another study, or of the zoo; can be repeated.",
        ),
    ] = None,
    sampler: Annotated[
        SamplerName | None, typer.Option(help="Sampler that proposes architectures; by default the recipe's.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a key of the recipe.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for configs, logs, checkpoints and the report; by default work_dirs/RECIPE."),
    ] = None,
    workers: Annotated[
        str, typer.Option(metavar="N|auto", help="Number of workers; auto starts one for each GPU.")
    ] = "1",
    launcher: Annotated[
        Literal["local", "ray"], typer.Option(help="Where workers run: on this machine, or on a Ray cluster.")
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="Address of the Ray cluster, or auto for the one on this machine.")
    ] = None,
    mixed_devices: Annotated[
        bool,
        typer.Option(
            "--mixed-devices", help="Accept inference times of different devices; the report shows the device of each."
        ),
    ] = False,
    weights_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="SMNAS_WEIGHTS",
            help="Folder with pre-trained weights: NAME.pth or NAME.safetensors for timm:NAME, checkpoints of "
            "MMDetection by their file names; for recipes with training.weights auto.",
        ),
    ] = None,
    status: Annotated[
        bool, typer.Option("--status", help="Print the progress of the search from the database, and write nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only problems, and where the report is.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be searched, and train nothing.")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the sampler.")] = None,
) -> None:
    """Search detectors for a data folder, or as a recipe says; the same command resumes a search that was stopped."""
    started = time.time()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    constraints = {
        "max_latency_ms": _number("--max-latency", max_latency, _MILLISECONDS, "a time such as 15ms or 0.2s"),
        "max_params": _number("--max-params", max_params, _COUNTS, "a number such as 10M or 900k"),
        "min_map": min_map,
    }
    limits = [f"constraints.{name}={limit}" for name, limit in constraints.items() if limit is not None]
    seconds, weights_folder = _seconds(budget), _existing(weights_dir)
    changes = [*(overrides or ()), *limits]
    if is_data_folder(Path(recipe)):
        if seconds is None and n_trials is None:
            seconds = _DEFAULT_BUDGET
        planned_for = seconds or _DEFAULT_BUDGET
        loaded = _planned(Path(recipe), output, changes, planned_for, weights_folder, dry_run=dry_run, status=status)
    else:
        loaded = load_recipe(recipe, changes)
    stages: tuple[StageName, ...] = ("structural", "modular") if stage == "all" else (stage,)
    options = Options(
        recipe=loaded,
        stages=stages,
        storage=storage,
        n_trials=n_trials,
        budget=seconds,
        final=loaded.final if "structural" in stages and not no_final else None,
        started=started,
        candidates=_trial_numbers(candidates),
        sources=tuple(sources or ()),
        sampler=sampler,
        output=output,
        workers=_number_of(workers),
        launcher=launcher,
        ray_address=ray_address,
        mixed_devices=mixed_devices,
        weights_folder=weights_folder,
        quiet=quiet,
        seed=seed,
    )
    for name in stages:
        if name not in loaded.stages:
            raise UserError(f"--stage {stage}: recipe {recipe!r} has no section {name}")
    searches_a_space = stage != "transfer"
    for option, given, applies, place in (
        ("--from", sources[0] if sources else None, not searches_a_space, "--stage transfer"),
        ("--candidates", candidates, stage in ("modular", "all"), "--stage modular and all"),
        ("--sampler", sampler, searches_a_space, "--stage structural, modular and all"),
        ("--seed", seed, searches_a_space, "--stage structural, modular and all"),
        ("--ray-address", ray_address, launcher == "ray", "--launcher ray"),
    ):
        if given is not None and not applies:
            raise UserError(f"{option} {given}: is for {place}")
    if status and dry_run:
        raise UserError("--status: expected one of --status and --dry-run")
    if dry_run or (not status and launcher == "local"):
        # Another process loads torch, which takes seconds, and this one the rest. Several workers are forked from the
        # other one, too.
        preload(*([] if options.workers == 1 else ["smnas_optuna.execution.local"]))
    from smnas_optuna.run_study import stages as run

    (run.describe if dry_run else run.show_status if status else run.search)(options)


def _planned(
    folder: Path,
    output: Path | None,
    overrides: list[str],
    budget: float,
    weights_folder: Path | None,
    *,
    dry_run: bool,
    status: bool,
) -> Recipe:
    """Return the plan for a data folder, made now unless there is one."""
    from smnas_optuna.planning import own_data  # loads SciPy, which other searches do not wait for here
    from smnas_optuna.reporting.progress import console

    out = console()
    output = output or Path("work_dirs") / own_data.search_name(folder, overrides)
    known = own_data.known_plan(folder, output, overrides)
    if known is not None:
        return known
    if status:
        raise UserError(f"{output}: has no plan, so there is no search to show the status of")
    preload()
    return own_data.plan_search(
        folder,
        output if dry_run else writable_folder(output),
        overrides,
        budget,
        weights_folder,
        lambda line: out.print(line, soft_wrap=True),
        write=not dry_run,
    )


def _number(option: str, text: str | None, units: Mapping[str, float], expected: str) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-zA-Z]*)", text)
    if found is None or found[2] not in units or not float(found[1]):
        raise UserError(f"{option}: found {text!r}, expected {expected}")
    return float(found[1]) * units[found[2]]


def _seconds(budget: str | None) -> float | None:
    try:
        return None if budget is None else parse_duration(budget)
    except ValueError as error:
        raise UserError(f"--budget: {error}") from None


def _existing(folder: Path | None) -> Path | None:
    if folder is not None and not folder.exists():
        raise UserError(f"--weights-dir {folder}: no such folder; expected one with files of weights")
    return folder and folder.resolve()


def _number_of(workers: str) -> int | None:
    if workers == "auto":
        return None
    if not (workers.isascii() and workers.isdigit() and int(workers)):
        raise UserError(f"--workers {workers}: expected a number from 1, or auto")
    return int(workers)


def _trial_numbers(text: str | None) -> tuple[int, ...] | None:
    try:
        numbers = None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if numbers is not None and (not numbers or min(numbers) < 0):
        raise UserError(f"--candidates {text!r}: expected numbers of stage one's trials, such as 3,17,20")
    return numbers
