"""Runs the stages of a search: starts the workers, shows their progress, and writes the report at the end."""

import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import optuna
import typer
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from rich.console import Console

from smnas_optuna.command_line import writable_folder
from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.errors import UserError
from smnas_optuna.execution.interruption import Interruption
from smnas_optuna.execution.local import supervise, work_here
from smnas_optuna.execution.loop import SearchStopped
from smnas_optuna.execution.worker import Assignment, Finished, Message, SearchAssignment
from smnas_optuna.recipe.recipe import StageName
from smnas_optuna.reporting import status
from smnas_optuna.reporting.dashboard import DashboardUpdater, describe_trial
from smnas_optuna.reporting.page import write_report
from smnas_optuna.reporting.progress import SearchProgress, StudyReader, console, sum_of
from smnas_optuna.reporting.summary import summary_of
from smnas_optuna.run_study.command import Options
from smnas_optuna.search import dry_run
from smnas_optuna.search.candidates import modular_searches
from smnas_optuna.search.modular import examples
from smnas_optuna.search.search import Search
from smnas_optuna.search.structural import StructuralSearch
from smnas_optuna.search.studies import present_searches, refuse_other_search
from smnas_optuna.search.transfer import transfer_search
from smnas_optuna.study.budget import Deadline, RunningTime, seconds_spent
from smnas_optuna.study.storage import mask, network_file_system, open_storage, storage_url
from smnas_optuna.timing.gpus import assign_gpus
from smnas_optuna.training.process import visible_gpus

Launch = Callable[[Sequence[Assignment], Callable[[Message], None], Callable[[str], None], Interruption], None]


def describe(options: Options) -> None:
    """Print what a search would do; trains and writes nothing."""
    out = console()
    for name in options.stages:
        dry_run.describe(_example(name, options), options.n_trials, options.sampler, options.weights_folder, out)


def show_status(options: Options) -> None:
    """Print the progress of a search from its database; writes nothing."""
    status.show_status(options.storage, options.recipe, options.n_trials, console())


def search(options: Options) -> None:
    """Run the stages of a search, and write their reports."""
    out, recipe = console(), options.recipe
    folder = writable_folder(options.output or Path("work_dirs") / recipe.name)
    database = open_storage(options.storage)
    dataset = open_dataset(recipe.dataset)
    url = storage_url(options.storage)
    if url.password and any(url.password in argument for argument in sys.argv):
        out.print("the password in --storage shows in lists of processes; in SMNAS_STORAGE or @FILE it does not")
    workers = _plan_workers(options, folder, out)
    if len(workers.gpus) > 1 and url.get_backend_name() == "sqlite" and (kind := network_file_system(url)):
        raise UserError(
            f"--storage {mask(url)}: lies on a network file system ({kind}), where SQLite cannot be shared by several "
            "workers; expected a local disk or PostgreSQL"
        )
    for number, name in enumerate(options.stages):
        searches = _searches(name, options, database)
        for each in searches:
            refuse_other_search(database, each)
        names = {each.study_name for each in (*searches, *present_searches(database, recipe))}
        deadline = None
        if options.budget is not None:
            spent = seconds_spent(database, names, options.started)
            deadline = Deadline.of_stage(options.budget, spent, len(options.stages) - number)
        assignments = [
            SearchAssignment(
                worker,
                searches,
                url.render_as_string(hide_password=False),
                dataset,
                folder,
                describe_trial,
                options.n_trials,
                deadline=deadline,
                sampler=options.sampler,
                seed=options.seed,
                gpus=own,
                sharing=workers.sharing or workers.gpus.count(own),
                workers=workers.per_machine,
                mixed_devices=options.mixed_devices,
                weights_folder=options.weights_folder,
            )
            for worker, own in enumerate(workers.gpus)
        ]
        with RunningTime(database, names, options.started, options.budget):
            _run_stage(assignments, workers.launch, database, out, quiet=options.quiet)


def _searches(stage: StageName, options: Options, database: RDBStorage) -> tuple[Search, ...]:
    """Return what the studies of a stage search."""
    if stage == "structural":
        return (StructuralSearch(options.recipe),)
    if stage == "modular":
        return tuple(modular_searches(database, options.recipe, options.candidates))
    return (transfer_search(database, options.recipe, options.sources),)


def _example(stage: StageName, options: Options) -> Search:
    """Return what a study of a stage searches, or may search where that depends on a stage before."""
    if stage == "structural":
        return StructuralSearch(options.recipe)
    if stage == "modular":
        return examples(options.recipe)[0]
    return transfer_search(_to_read(options.storage), options.recipe, options.sources)


def _to_read(storage: str) -> BaseStorage:
    """Open a database without writing; returns an empty one if the file does not exist."""
    url = storage_url(storage)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        return InMemoryStorage()
    return open_storage(storage, create=False)


@dataclass(frozen=True)
class _Workers:
    """The workers of a run.

    Args:
        launch: Starts them.
        gpus: For each worker the names of its GPUs, or None to use those that are visible to it.
        sharing: Number of workers that share the memory of a device; None for those that have the same GPUs.
        per_machine: Number of workers on a machine.
    """

    launch: Launch
    gpus: list[tuple[str, ...] | None]
    sharing: int | None
    per_machine: int


def _plan_workers(options: Options, folder: Path, out: Console) -> _Workers:
    """Decide how many workers there are and where they run."""
    device, count = options.recipe.device, options.workers
    if options.launcher == "ray":
        from smnas_optuna.execution import ray  # needs the extra of this name

        ray.connect(options.ray_address)
        count = count or ray.places(device)
        launch = partial(ray.supervise_on_ray, device)
        return _Workers(launch, [None] * count, ray.sharing(device, count), ray.workers_per_node(count))
    gpus: list[tuple[str, ...] | None] = [None] * (count or 1)
    if count != 1 and device.kind != "cpu":
        names, problem = visible_gpus(folder / "output.log")
        if names and problem:
            out.print(f"not used: {problem}", soft_wrap=True)
        gpus = assign_gpus(names, device.gpus_per_trial, count)
    if len(gpus) == 1:
        return _Workers(work_here, gpus, None, 1)
    return _Workers(supervise, gpus, None, len(gpus))


def _run_stage(
    assignments: Sequence[SearchAssignment], launch: Launch, database: RDBStorage, out: Console, *, quiet: bool
) -> None:
    """Let workers search the studies of one stage side by side, and print the results."""
    searches, folder = assignments[0].searches, assignments[0].folder
    n_trials, deadline = assignments[0].n_trials, assignments[0].deadline
    totals = {search.path: n_trials or (search.trials if deadline is None else None) for search in searches}
    studies = StudyReader(database, searches)
    before = {search.path: studies.done(search.path) for search in searches}
    for search in () if quiet else searches:
        known, total = before[search.path], totals[search.path]
        of_all = f"{known} of {total}" if total else f"{known}"
        spent = f"; {deadline} spent" if deadline else ""
        out.print(f"{search.title}: {of_all} trials done{spent}", soft_wrap=True)
    dashboard = DashboardUpdater(database, searches)
    try:
        with SearchProgress(out, before, totals, studies.read, deadline, quiet=quiet) as progress:

            def hear(message: Message) -> None:
                progress.handle(message)
                if isinstance(message, Finished):
                    dashboard.refresh(message.study)

            interruption = Interruption()
            with interruption.listen(signal.SIGINT, signal.SIGTERM):
                if deadline is None or deadline.left > 0 or not any(before.values()):
                    launch(assignments, hear, progress.warn, interruption)
    except KeyboardInterrupt:
        done = sum(studies.done(search.path) for search in searches)
        all_trials = sum_of(totals.values())
        of_all = f"{done} of {all_trials}" if all_trials else f"{done}"
        out.print(f"interrupted with {of_all} trials done, all kept; the same command goes on")
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
