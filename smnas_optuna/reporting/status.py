"""How a search stands, from its database alone."""

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
from smnas_optuna.search.search import Search
from smnas_optuna.search.studies import candidates_of, transferred_in
from smnas_optuna.study.optuna_internals import id_of
from smnas_optuna.study.patient_storage import PatientStorage
from smnas_optuna.study.storage import open_storage
from smnas_optuna.study.trial_outcome import counts_toward_total


def show_status(url: str, recipe: Recipe, n_trials: int | None, out: Console) -> None:
    """Print for each of a recipe's studies its workers, trials, rate, expected end and front; writes nothing.

    Args:
        url: Of the database.
        recipe: Of the studies.
        n_trials: Trials that each shall reach, instead of the recipe's.
        out: Where to print.

    Raises:
        UserError: There is no such database, or none of the recipe's studies in it.
    """
    storage = open_storage(url, create=False)
    searches = [
        Search(recipe),
        *(Search(recipe, candidate) for candidate in candidates_of(storage, recipe)),
        Search(recipe, transferred=tuple(transferred_in(storage, recipe))),
    ]
    names = set(optuna.get_all_study_names(storage))
    present = [search for search in searches if search.study_name in names]
    if not present:
        raise UserError(f"study {searches[0].study_name!r}: not in the database, so there is no status to tell")
    for search in present:
        results = results_of(optuna.load_study(study_name=search.study_name, storage=storage))
        for line in _lines(results, storage, n_trials or search.trials):
            out.print(line, soft_wrap=True)
        if any(trial.state == TrialState.COMPLETE for trial in results.trials):
            out.print(front_table(results))


def _lines(results: StudyResults, storage: PatientStorage, total: int) -> list[str]:
    done = [trial for trial in results.trials if counts_toward_total(trial)]
    states = Counter(trial.state.name.lower() for trial in results.trials)
    lines = [
        f"{results.name}: {len(done)} of {total} trials done",
        "  trials: " + (", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"),
    ]
    running = [trial for trial in results.trials if trial.state == TrialState.RUNNING]
    for trial in running:
        host, pid = (*str(trial.user_attrs.get("worker", "?")).split(":"), "?")[:2]
        sign = storage.last_renewal(id_of(trial))
        heard = f"heard {sign.age:.0f} s ago" if sign else "not heard yet"
        what = trial.user_attrs.get("architecture", "being proposed")
        lines.append(f"  worker {pid} on {host}, {heard}: trial {trial.number}, {what}")
    if not running:
        lines.append("  no worker")
    lines += _rate(done, total)
    if hypervolume := measure_hypervolume(results):
        lines.append(f"  hypervolume: {hypervolume}")
    return lines


def _rate(done: list[FrozenTrial], total: int) -> list[str]:
    """Tell trials per hour over the last ones, and when the rest would be done."""
    ends = sorted(trial.datetime_complete for trial in done if trial.datetime_complete)[-20:]
    if len(ends) < 2 or ends[-1] == ends[0]:
        return []
    each = (ends[-1] - ends[0]) / (len(ends) - 1)
    lines = [f"  {timedelta(hours=1) / each:.1f} trials an hour, the last at {ends[-1]:%Y-%m-%d %H:%M}"]
    if len(done) < total:
        lines.append(f"  expected end: {datetime.now() + each * (total - len(done)):%Y-%m-%d %H:%M}")
    return lines
