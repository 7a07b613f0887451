"""Output at the end of a search: the Pareto front, the gain of stage two, and transferred detectors."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
from rich.table import Table

from smnas_optuna.reporting.quantity import measured_text
from smnas_optuna.reporting.study_results import StudyResults, accuracy_and_costs, losses_of
from smnas_optuna.reporting.trial_table import Column, detector_columns, metric_columns
from smnas_optuna.samplers.partial_order_pruning.dominance import dominates
from smnas_optuna.search.search import Search


def baseline_text(search: Search, results: StudyResults) -> str | None:
    """Return a line that says how many detectors of a candidate's study dominate the baseline.

    The baseline is the candidate with its original backbone, trained in the same way. None if it has not finished.

    Args:
        search: Search of the candidate.
        results: Results of the candidate's study.
    """
    finished, objectives = results.finished, results.objectives
    baseline = finished[finished["architecture"] == str(search.baseline)]
    if baseline.empty:
        return None
    better = finished[dominates(losses_of(finished, objectives), losses_of(baseline.iloc[:1], objectives))]

    def text(trial: "pd.Series[Any]") -> str:
        return ", ".join(
            f"{item.quantity.title} {item.quantity.text_with_unit(trial[item.name])}" for item in objectives
        )

    count = f"{len(better)} of {len(finished)} detectors dominate"
    line = f"{search.candidate}: {count} {search.baseline.backbone} ({text(baseline.iloc[0])})"
    if better.empty:
        return line
    accuracy, _ = accuracy_and_costs(objectives)
    best = better.sort_values(accuracy.name, ascending=not accuracy.maximize).iloc[0]
    return f"{line}; the most accurate of them is trial {best['number']}, {best['backbone']} ({text(best)})"


def front_table(results: StudyResults) -> Table:
    """Return a study's Pareto front as a table for the terminal, the most accurate first."""
    front = results.front
    metrics = metric_columns(["map", "map_50"], results.objectives)
    columns = [Column("number"), *metrics, *detector_columns(front)]
    table = _table(f"Pareto front of {results.name}", columns)
    for trial in front.sort_values("map", ascending=False).to_dict("records"):
        table.add_row(*(column.text(trial) for column in columns))
    return table


def transfer_table(search: Search, results: StudyResults) -> Table:
    """Return the detectors that a transfer has trained as a table for the terminal (SM-NAS, Table 5).

    The most accurate detector comes first. Accuracy has the difference to the first baseline in parentheses, inference
    time the ratio to it.
    """
    assert search.transferred is not None
    finished = results.finished
    accuracy = accuracy_and_costs(results.objectives)[0].name
    metrics = list(dict.fromkeys([accuracy, "map", "latency_ms", "params"]))
    table = _table(f"Detectors of {results.name}", [Column(name) for name in ("number", *metrics, "architecture")])
    for heading in ("from", "trained from"):
        table.add_column(heading)
    origins = {
        str(each.architecture): (each.source, search.start(each.architecture.backbone)) for each in search.transferred
    }
    references = [str(architecture) for architecture in search.references]
    baseline = finished[finished["architecture"].isin(references[:1])]
    for trial in finished.sort_values(accuracy, ascending=False).to_dict("records"):
        values = {name: measured_text(name, trial) for name in metrics}
        if not baseline.empty and trial["architecture"] not in references[:1]:
            values[accuracy] += f" ({trial[accuracy] - baseline[accuracy].iloc[0]:+.3f})"
            values["latency_ms"] += f" ({trial['latency_ms'] / baseline['latency_ms'].iloc[0]:.2f} x)"
        architecture = trial["architecture"]
        table.add_row(str(trial["number"]), *values.values(), architecture, *origins[architecture])
    return table


def _table(title: str, columns: Iterable[Column]) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column.heading, justify="right" if column.is_number else "left")
    return table
