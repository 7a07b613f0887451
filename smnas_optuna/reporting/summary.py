"""Output at the end of a search: the Pareto front, the gain of stage two, and transferred detectors."""

from collections.abc import Iterable
from typing import Any

import optuna
import pandas as pd
from rich.table import Table

from smnas_optuna.reporting.quantity import measured_text
from smnas_optuna.reporting.study_results import StudyResults, accuracy_and_costs, losses_of, results_of
from smnas_optuna.reporting.trial_table import Column, detector_columns, metric_columns
from smnas_optuna.samplers.partial_order_pruning.dominance import dominates
from smnas_optuna.search.constraints import limits_text, nearest_violation
from smnas_optuna.search.search import Search


def summary_of(search: Search, study: optuna.Study) -> list[Table | str]:
    """Return the results of a search for the terminal: tables and lines of text.

    Of a search that proposes nothing these are all its detectors, of any other the Pareto front, and how many detectors
    dominate the search's baseline.
    """
    results = results_of(study)
    if search.origins:
        return [_listed_table(search, results)]
    nearest = nearest_violation(results.trials)
    notes = [
        nearest and f"no detector keeps to the constraints, {limits_text(search.recipe.constraints)}; {nearest}",
        _baseline_text(search, results),
    ]
    return [front_table(results), *filter(None, notes)]


def _baseline_text(search: Search, results: StudyResults) -> str | None:
    """Return a line that says how many detectors dominate the search's baseline, which is trained in the same way.

    None if the search has no baseline, or its trial has not finished.
    """
    if search.baseline is None:
        return None
    finished, objectives = results.finished, results.objectives
    baseline = finished[finished["architecture"] == str(search.baseline)]
    if baseline.empty:
        return None
    better = finished[dominates(losses_of(finished, objectives), losses_of(baseline.iloc[:1], objectives))]

    def text(trial: "pd.Series[Any]") -> str:
        return ", ".join(
            f"{item.quantity.title} {item.quantity.text_with_unit(trial[item.name])}" for item in objectives
        )

    gain = (
        f"{search.path.rpartition('/')[2]}: {len(better)} of {len(finished)} detectors dominate "
        f"{search.baseline.backbone} ({text(baseline.iloc[0])})"
    )
    if better.empty:
        return gain
    accuracy, _ = accuracy_and_costs(objectives)
    best = better.sort_values(accuracy.name, ascending=not accuracy.maximize).iloc[0]
    return f"{gain}; the most accurate of them is trial {best['number']}, {best['backbone']} ({text(best)})"


def front_table(results: StudyResults) -> Table:
    """Return a study's Pareto front as a table for the terminal, the most accurate first."""
    front = results.front
    metrics = metric_columns(["map", "map_50"], results.objectives)
    columns = [Column("number"), *metrics, *detector_columns(front)]
    table = _table(f"Pareto front of {results.name}", columns)
    for trial in front.sort_values("map", ascending=False).to_dict("records"):
        table.add_row(*(column.text(trial) for column in columns))
    return table


def _listed_table(search: Search, results: StudyResults) -> Table:
    """Return all detectors of a search with their origins as a table for the terminal (SM-NAS, Table 5).

    The most accurate detector comes first. Accuracy has the difference to the baseline in parentheses, inference time
    the ratio to it.
    """
    finished = results.finished
    accuracy = accuracy_and_costs(results.objectives)[0].name
    metrics = list(dict.fromkeys([accuracy, "map", "latency_ms", "params"]))
    weights = Column("weights")
    table = _table(f"Detectors of {results.name}", [Column(name) for name in ("number", *metrics, "architecture")])
    for heading in ("from", weights.heading):
        table.add_column(heading)
    origins = {str(architecture): source for architecture, source in search.origins.items()}
    baseline = finished[finished["architecture"] == str(search.baseline)]
    for trial in finished.sort_values(accuracy, ascending=False).to_dict("records"):
        values = {name: measured_text(name, trial) for name in metrics}
        if not baseline.empty and trial["architecture"] != str(search.baseline):
            values[accuracy] += f" ({trial[accuracy] - baseline[accuracy].iloc[0]:+.3f})"
            values["latency_ms"] += f" ({trial['latency_ms'] / baseline['latency_ms'].iloc[0]:.2f} x)"
        architecture = trial["architecture"]
        table.add_row(str(trial["number"]), *values.values(), architecture, origins[architecture], weights.text(trial))
    return table


def _table(title: str, columns: Iterable[Column]) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column.heading, justify="right" if column.is_number else "left")
    return table
