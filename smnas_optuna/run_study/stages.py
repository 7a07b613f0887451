"""Runs the stages of a search: starts the workers, shows their progress, and writes the reports at the end."""

import sys
from functools import partial
from pathlib import Path

import typer
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from rich.console import Console

from smnas_optuna.command_line import writable_folder
from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.errors import UserError
from smnas_optuna.execution.local import supervise, work_here
from smnas_optuna.execution.loop import SearchStopped
from smnas_optuna.recipe.recipe import StageName
from smnas_optuna.reporting import status
from smnas_optuna.reporting.progress import console
from smnas_optuna.run_study.command import Options
from smnas_optuna.run_study.final import follow
from smnas_optuna.run_study.session import Session, Workers
from smnas_optuna.search import dry_run
from smnas_optuna.search.candidates import modular_searches
from smnas_optuna.search.modular import examples
from smnas_optuna.search.search import Search
from smnas_optuna.search.structural import StructuralSearch
from smnas_optuna.search.studies import refuse_other_search
from smnas_optuna.search.transfer import transfer_search
from smnas_optuna.study.budget import Deadline
from smnas_optuna.study.storage import mask, network_file_system, open_storage, storage_url
from smnas_optuna.timing.gpus import assign_gpus
from smnas_optuna.training.process import visible_gpus


def describe(options: Options) -> None:
    """Print what a search would do; trains and writes nothing."""
    out = console()
    for name in options.stages:
        dry_run.describe(_example(name, options), options.n_trials, options.sampler, options.weights_folder, out)
    if options.final:
        out.print(
            f"then the recommended detector is trained for {options.final.epochs} epochs at most, and saved as best/"
        )


def show_status(options: Options) -> None:
    """Print the progress of a search from its database; writes nothing."""
    status.show_status(options.storage, options.recipe, options.n_trials, console())


def search(options: Options) -> None:
    """Run the stages of a search and what follows them, and write their reports."""
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
    session = Session(options, out, folder, database, url.render_as_string(hide_password=False), dataset, workers)
    kept = options.final.share if options.final else 0.0
    for number, name in enumerate(options.stages):
        searches = _searches(name, options, database)
        for each in searches:
            refuse_other_search(database, each)
        deadline = None
        if options.budget is not None:
            spent = session.seconds_spent(searches)
            deadline = Deadline.of_stage(options.budget, spent, len(options.stages) - number, kept)
        try:
            session.run(searches, deadline, n_trials=options.n_trials)
        except SearchStopped as stopped:
            session.say(f"stopped: {stopped}; logs are in {folder}")
            raise typer.Exit(1) from None
        session.summarise(searches)
    if "structural" in options.stages:
        follow(session)


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


def _plan_workers(options: Options, folder: Path, out: Console) -> Workers:
    """Decide how many workers there are and where they run."""
    device, count = options.recipe.device, options.workers
    if options.launcher == "ray":
        from smnas_optuna.execution import ray  # needs the extra of this name

        ray.connect(options.ray_address)
        count = count or ray.places(device)
        launch = partial(ray.supervise_on_ray, device)
        return Workers(launch, [None] * count, ray.sharing(device, count), ray.workers_per_node(count))
    gpus: list[tuple[str, ...] | None] = [None] * (count or 1)
    if count != 1 and device.kind != "cpu":
        names, problem = visible_gpus(folder / "output.log")
        if names and problem:
            out.print(f"not used: {problem}", soft_wrap=True)
        gpus = assign_gpus(names, device.gpus_per_trial, count)
    if len(gpus) == 1:
        return Workers(work_here, gpus, None, 1)
    return Workers(supervise, gpus, None, len(gpus))
