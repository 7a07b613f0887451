"""``python -m smnas_optuna.run_study``: run a search, or resume one."""

import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import optuna
import typer
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from rich.console import Console

from smnas_optuna.command_line import run_command, writable_folder
from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.errors import UserError
from smnas_optuna.execution.interruption import Interruption
from smnas_optuna.execution.local import supervise
from smnas_optuna.execution.loop import SearchStopped
from smnas_optuna.execution.worker import Assignment, Finished, Message, SearchAssignment
from smnas_optuna.recipe.recipe import Recipe, SamplerName, StageName
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.reporting.dashboard import DashboardUpdater, describe_trial
from smnas_optuna.reporting.page import write_report
from smnas_optuna.reporting.progress import SearchProgress, StudyReader, console
from smnas_optuna.reporting.status import show_status
from smnas_optuna.reporting.summary import summary_of
from smnas_optuna.search.candidates import modular_searches
from smnas_optuna.search.dry_run import describe
from smnas_optuna.search.modular import examples
from smnas_optuna.search.search import Search
from smnas_optuna.search.structural import StructuralSearch
from smnas_optuna.search.studies import refuse_other_search
from smnas_optuna.search.transfer import transfer_search
from smnas_optuna.study.storage import DEFAULT_STORAGE, mask, network_file_system, open_storage, storage_url
from smnas_optuna.timing.gpus import assign_gpus
from smnas_optuna.training.process import preload, visible_gpus

Launch = Callable[[Sequence[Assignment], Callable[[Message], None], Callable[[str], None], Interruption], None]


def run_study(
    recipe: Annotated[str, typer.Argument(help="Path of a recipe, or the name of a shipped one.")],
    stage: Annotated[
        Literal["structural", "modular", "all", "transfer"],
        typer.Option(help="Which stage to search; all is the first two, transfer trains what --from names."),
    ] = "structural",
    storage: Annotated[
        str, typer.Option(envvar="SMNAS_STORAGE", help="Database URL that the study is kept in.")
    ] = DEFAULT_STORAGE,
    n_trials: Annotated[
        int | None, typer.Option(min=1, help="Trials that each study shall reach in total; the recipe's if not given.")
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...", help="Trials of stage one that stage two refines, instead of some of its front."
        ),
    ] = None,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="STUDY:TRIAL|best|front",
            help="What to transfer to the recipe's data: trials of another study, or a zoo detector; can be repeated.",
        ),
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
    workers: Annotated[str, typer.Option(metavar="N|auto", help="Processes; auto starts one for each GPU.")] = "1",
    launcher: Annotated[
        Literal["local", "ray"], typer.Option(help="Where workers run: on this machine, or on a Ray cluster.")
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster; auto finds this machine's.")
    ] = None,
    mixed_devices: Annotated[
        bool, typer.Option("--mixed-devices", help="Take times of devices that differ; the report tells them apart.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Tell from the database alone how the search stands, and write nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Tell only what goes wrong, and where the report is.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be searched, and train nothing.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the sampler.")] = None,
) -> None:
    """Search detectors as RECIPE says; the same command resumes a search that has ended."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    out = console()
    chosen = _trial_numbers(candidates)
    search = load_recipe(recipe, overrides or ())
    stages: list[StageName] = ["structural", "modular"] if stage == "all" else [stage]
    for name in stages:
        if name not in search.stages:
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
    if dry_run:
        for name in stages:
            describe(_example(name, search, storage, sources or ()), n_trials, sampler, out)
        return
    if status:
        show_status(storage, search, n_trials, out)
        return
    folder = writable_folder(output or Path("work_dirs") / search.name)
    database = open_storage(storage)
    dataset = open_dataset(search.dataset)
    url = storage_url(storage)
    if url.password and any(url.password in argument for argument in sys.argv):
        out.print("the password in --storage shows in lists of processes; in SMNAS_STORAGE or @FILE it does not")
    crew = _crew(launcher, ray_address, workers, search, folder, out)
    if len(crew.gpus) > 1 and url.get_backend_name() == "sqlite" and (kind := network_file_system(url)):
        raise UserError(
            f"--storage {mask(url)}: lies on a network file system ({kind}), where SQLite cannot be shared by several "
            "workers; expected a local disk or PostgreSQL"
        )
    for name in stages:
        searches = _searches(name, search, database, chosen, sources or ())
        for each in searches:
            refuse_other_search(database, each)
        assignments = [
            SearchAssignment(
                worker,
                tuple(searches),
                url.render_as_string(hide_password=False),
                dataset,
                folder,
                describe_trial,
                n_trials,
                sampler,
                seed,
                gpus=own,
                sharing=crew.sharing or crew.gpus.count(own),
                workers=crew.per_machine,
                mixed_devices=mixed_devices,
            )
            for worker, own in enumerate(crew.gpus)
        ]
        _run_stage(assignments, crew.launch, database, out, quiet=quiet)


def _searches(
    stage: StageName, recipe: Recipe, storage: RDBStorage, candidates: Sequence[int] | None, sources: Sequence[str]
) -> Sequence[Search]:
    """Return what the studies of a stage search."""
    if stage == "structural":
        return [StructuralSearch(recipe)]
    if stage == "modular":
        return modular_searches(storage, recipe, candidates)
    return [transfer_search(storage, recipe, sources)]


def _example(stage: StageName, recipe: Recipe, storage: str, sources: Sequence[str]) -> Search:
    """Return what a study of a stage searches, or may search where that depends on a stage before."""
    if stage == "structural":
        return StructuralSearch(recipe)
    if stage == "modular":
        return examples(recipe)[0]
    return transfer_search(_to_read(storage), recipe, sources)


def _to_read(storage: str) -> BaseStorage:
    """Open a database without writing; where there is no such file, one with no study in it."""
    url = storage_url(storage)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        return InMemoryStorage()
    return open_storage(storage, create=False)


@dataclass(frozen=True)
class _Crew:
    """The workers of a run.

    Args:
        launch: Starts them.
        gpus: Of each worker the names of its GPUs, or None for those that it sees.
        sharing: How many share a device's memory; None for those that have the same GPUs.
        per_machine: How many are on a machine.
    """

    launch: Launch
    gpus: list[tuple[str, ...] | None]
    sharing: int | None
    per_machine: int


def _crew(name: str, address: str | None, workers: str, recipe: Recipe, folder: Path, out: Console) -> _Crew:
    """Decide how many workers there are and where they run."""
    count = None if workers == "auto" else int(workers) if workers.isascii() and workers.isdigit() else 0
    if count == 0:
        raise UserError(f"--workers {workers}: expected a number from 1, or auto")
    each = recipe.device.gpus_per_trial
    if name == "ray":
        from smnas_optuna.execution import ray  # needs the extra of this name

        ray.connect(address)
        count = count or ray.places(recipe.device)
        launch = partial(ray.supervise_on_ray, recipe.device)
        return _Crew(launch, [None] * count, ray.sharing(recipe.device, count), ray.workers_per_node(count))
    if count == 1 or recipe.device.kind == "cpu":
        preload(training=False)
        return _Crew(supervise, [None] * (count or 1), None, count or 1)
    preload()
    names, problem = visible_gpus(folder / "output.log")
    if names and problem:
        out.print(f"not used: {problem}", soft_wrap=True)
    gpus = assign_gpus(names, each, count)
    return _Crew(supervise, gpus, None, len(gpus))


def _run_stage(
    assignments: Sequence[SearchAssignment], launch: Launch, database: RDBStorage, out: Console, *, quiet: bool
) -> None:
    """Let workers search the studies of one stage side by side, and tell what came of it."""
    searches, folder = assignments[0].searches, assignments[0].folder
    totals = {search.path: assignments[0].n_trials or search.trials for search in searches}
    studies = StudyReader(database, searches)
    before = {search.path: studies.done(search.path) for search in searches}
    for search in () if quiet else searches:
        out.print(f"{search.title}: {before[search.path]} of {totals[search.path]} trials done", soft_wrap=True)
    dashboard = DashboardUpdater(database, searches)
    try:
        with SearchProgress(out, before, totals, studies.read, quiet=quiet) as progress:

            def hear(message: Message) -> None:
                progress.hear(message)
                if isinstance(message, Finished):
                    dashboard.refresh(message.study)

            interruption = Interruption()
            with interruption.listen(signal.SIGINT, signal.SIGTERM):
                launch(assignments, hear, progress.say, interruption)
    except KeyboardInterrupt:
        done, total = sum(studies.done(search.path) for search in searches), sum(totals.values())
        out.print(f"interrupted with {done} of {total} trials done, all kept; the same command goes on")
        raise
    except SearchStopped as stopped:
        out.print(f"stopped: {stopped}; logs are in {folder}", soft_wrap=True)
        raise typer.Exit(1) from None
    finally:
        dashboard.refresh_all()
    for search in searches:
        study = optuna.load_study(study_name=search.study_name, storage=database)
        for part in () if quiet else summary_of(search, study):
            out.print(part, soft_wrap=isinstance(part, str))
        out.print(f"report: {write_report(study, folder)}", soft_wrap=True)


def _trial_numbers(text: str | None) -> list[int] | None:
    try:
        numbers = None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if numbers is not None and (not numbers or min(numbers) < 0):
        raise UserError(f"--candidates {text!r}: expected numbers of stage one's trials, such as 3,17,20")
    return numbers


if __name__ == "__main__":
    run_command(run_study, "run_study")
