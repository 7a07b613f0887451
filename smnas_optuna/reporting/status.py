"""Status of a search, read from its database."""

from collections import Counter
from datetime import datetime, timedelta

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from smnas_optuna.errors import UserError
from smnas_optuna.recipe.recipe import Recipe
from smnas_optuna.reporting.hypervolume import measure_hypervolume
from smnas_optuna.reporting.study_results import StudyResults, results_of
from smnas_optuna.reporting.summary import front_table
from smnas_optuna.search.structural import StructuralSearch
from smnas_optuna.search.studies import present_searches
from smnas_optuna.study.budget import duration_text, recorded_budget, seconds_spent
from smnas_optuna.study.optuna_internals import id_of
from smnas_optuna.study.patient_storage import PatientStorage
from smnas_optuna.study.storage import open_storage
from smnas_optuna.study.trial_outcome import counts_toward_total


def show_status(url: str, recipe: Recipe, n_trials: int | None, out: Console) -> None:
    """Print the workers, trials, rate, expected end and front of each of a recipe's studies.

    Writes nothing to the database.

    Args:
        url: URL of the database.
        recipe: Recipe of the studies.
        n_trials: Total number of trials of each study; None for the recipe's.
        out: Console to print on.

    Raises:
        UserError: The database does not exist, or has none of the recipe's studies.
    """
    storage = open_storage(url, create=False)
    searches = present_searches(storage, recipe)
    if not searches:
        name = StructuralSearch(recipe).study_name
        raise UserError(f"study {name!r}: not in the database, so it has no status to show")
    names = [search.study_name for search in searches]
    spent, budget = seconds_spent(storage, names), recorded_budget(storage, names)
    of_budget = f" of its budget of {duration_text(budget)}" if budget else ""
    out.print(f"{recipe.name}: searched for {duration_text(spent)}{of_budget}")
    for search in searches:
        results = results_of(optuna.load_study(study_name=search.study_name, storage=storage))
        for line in _lines(results, storage, n_trials or (None if budget else search.trials)):
            out.print(line, soft_wrap=True)
        if any(trial.state == TrialState.COMPLETE for trial in results.trials):
            out.print(front_table(results))


def _lines(results: StudyResults, storage: PatientStorage, total: int | None) -> list[str]:
    done = [trial for trial in results.trials if counts_toward_total(trial)]
    states = Counter(trial.state.name.lower() for trial in results.trials)
    lines = [
        f"{results.name}: {len(done)}{f' of {total}' if total else ''} trials done",
        "  trials: " + (", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"),
    ]
    running = [trial for trial in results.trials if trial.state == TrialState.RUNNING]
    for trial in running:
        host, pid = (*str(trial.user_attrs.get("worker", "?")).split(":"), "?")[:2]
        renewal = storage.last_renewal(id_of(trial))
        seen = f"last seen {renewal.age:.0f} s ago" if renewal else "not seen yet"
        architecture = trial.user_attrs.get("architecture", "being proposed")
        lines.append(f"  worker {pid} on {host}, {seen}: trial {trial.number}, {architecture}")
    if not running:
        lines.append("  no worker")
    lines += _rate(done, total)
    if hypervolume := measure_hypervolume(results):
        lines.append(f"  hypervolume: {hypervolume}")
    return lines


def _rate(done: list[FrozenTrial], total: int | None) -> list[str]:
    """Return lines with the number of trials per hour, over the last 20 trials, and the expected end."""
    ends = sorted(trial.datetime_complete for trial in done if trial.datetime_complete)[-20:]
    if len(ends) < 2 or ends[-1] == ends[0]:
        return []
    each = (ends[-1] - ends[0]) / (len(ends) - 1)
    lines = [f"  {timedelta(hours=1) / each:.1f} trials an hour, the last at {ends[-1]:%Y-%m-%d %H:%M}"]
    if total and len(done) < total:
        lines.append(f"  expected end: {datetime.now() + each * (total - len(done)):%Y-%m-%d %H:%M}")
    return lines
