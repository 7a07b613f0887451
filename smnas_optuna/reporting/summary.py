"""What a search prints at its end: the front as a table, what stage two has gained, how transferred detectors do."""

from typing import Any

import optuna
import pandas as pd
from rich.table import Table

from smnas_optuna.reporting.pareto import accuracy_and_costs, objectives_of, pareto_front, trials_frame
from smnas_optuna.reporting.quantity import quantity_of
from smnas_optuna.search.search import Search

_ALWAYS_SHOWN = ("latency_ms", "flops", "params")
_HEADINGS = {
    "map": "mAP",
    "map_50": "AP50",
    "map_75": "AP75",
    "latency_ms": "ms",
    "flops": "GFLOPs",
    "params": "params (M)",
    "backbone_flops": "backbone GFLOPs",
    "backbone_params": "backbone params (M)",
}


def summary_of(search: Search, study: optuna.Study) -> list[Table | str]:
    """Return what a search has come to, for the terminal: tables and lines of text.

    That is all detectors of a search in which nothing is proposed; of any other the front, and how many dominate the
    search's baseline.
    """
    if search.origins:
        return [_listed_table(search, study)]
    gain = _baseline_text(search, study)
    return [front_table(study), gain] if gain else [front_table(study)]


def _baseline_text(search: Search, study: optuna.Study) -> str | None:
    """Say how many detectors of a study are better than the search's baseline, trained likewise.

    Better is dominating: no worse in any objective and better in one. None without a baseline, and where it is not
    trained (yet).
    """
    if search.baseline is None:
        return None
    frame = trials_frame(study)
    frame = frame[frame["is_finished"]]
    baseline = frame[frame["architecture"] == str(search.baseline)]
    if baseline.empty:
        return None
    objectives = objectives_of(study)
    losses = frame[[objective.name for objective in objectives]].to_numpy() * [item.sign for item in objectives]
    own = losses[(frame["architecture"] == str(search.baseline)).to_numpy()][0]
    better = frame[(losses <= own).all(axis=1) & (losses < own).any(axis=1)]

    def text(trial: "pd.Series[Any]") -> str:
        return ", ".join(
            f"{item.quantity.title} {item.quantity.text_with_unit(trial[item.name])}" for item in objectives
        )

    gain = (
        f"{search.path.rpartition('/')[2]}: {len(better)} of {len(frame)} detectors dominate "
        f"{search.baseline.backbone} ({text(baseline.iloc[0])})"
    )
    if better.empty:
        return gain
    accuracy, _ = accuracy_and_costs(objectives)
    best = better.sort_values(accuracy.name, ascending=not accuracy.maximize).iloc[0]
    return f"{gain}; the most accurate of them is trial {best['number']}, {best['backbone']} ({text(best)})"


def front_table(study: optuna.Study) -> Table:
    """Return the study's Pareto front as a table for the terminal, the most accurate first."""
    table = Table(title=f"Pareto front of {study.study_name}")
    metrics = dict.fromkeys(["map", "map_50", *(item.name for item in objectives_of(study)), *_ALWAYS_SHOWN])
    for heading in ("trial", *(_HEADINGS.get(name, name) for name in metrics)):
        table.add_column(heading, justify="right")
    front = pareto_front(study)
    # The front of each device, where times of several are not comparable.
    columns = ["device", "architecture"] if front["device"].nunique() > 1 else ["architecture"]
    for column in columns:
        table.add_column(column)
    for row in front.sort_values("map", ascending=False).to_dict("records"):
        spreads = {"latency_ms": row["latency_spread_ms"]}
        values = [quantity_of(name).text_with_spread(row[name], spreads.get(name)) for name in metrics]
        table.add_row(str(row["number"]), *values, *(str(row[column]) for column in columns))
    return table


def _listed_table(search: Search, study: optuna.Study) -> Table:
    """Return detectors with their origins as a table for the terminal, beside the baseline (SM-NAS, Table 5).

    Accuracy has its distance from the baseline's, time its ratio to it; the most accurate comes first.
    """
    frame = trials_frame(study)
    frame = frame[frame["is_finished"]]
    accuracy = accuracy_and_costs(objectives_of(study))[0].name
    metrics = dict.fromkeys([accuracy, "map", "latency_ms", "params"])
    table = Table(title=f"Detectors of {study.study_name}")
    for heading in ("trial", *(_HEADINGS.get(name, name) for name in metrics)):
        table.add_column(heading, justify="right")
    for heading in ("architecture", "from", "trained from"):
        table.add_column(heading)
    origins = {str(architecture): (each.source, each.weights) for architecture, each in search.origins.items()}
    baseline = frame[frame["architecture"] == str(search.baseline)]
    for row in frame.sort_values(accuracy, ascending=False).to_dict("records"):
        values = {
            name: quantity_of(name).text_with_spread(row[name], row["latency_spread_ms"] if "latency" in name else None)
            for name in metrics
        }
        if not baseline.empty and row["architecture"] != str(search.baseline):
            values[accuracy] += f" ({row[accuracy] - baseline[accuracy].iloc[0]:+.3f})"
            values["latency_ms"] += f" ({row['latency_ms'] / baseline['latency_ms'].iloc[0]:.2f} x)"
        table.add_row(str(row["number"]), *values.values(), row["architecture"], *origins[row["architecture"]])
    return table
