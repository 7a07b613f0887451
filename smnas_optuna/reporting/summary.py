"""What a search tells at its end: the front as a table, and what stage two has gained."""

from typing import Any

import optuna
import pandas as pd
from rich.table import Table

from smnas_optuna.reporting.pareto import accuracy_and_costs, objectives_of, pareto_front, trials_frame
from smnas_optuna.reporting.quantity import quantity_of
from smnas_optuna.search import Search

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


def baseline_text(search: Search, study: optuna.Study) -> str | None:
    """Say how many detectors of a candidate's study are better than the candidate's own backbone, trained likewise.

    Better is dominating: no worse in any objective and better in one. None where the baseline is not trained (yet).
    """
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

    found = f"{len(better)} of {len(frame)} detectors dominate"
    told = f"{search.candidate}: {found} {search.baseline.backbone} ({text(baseline.iloc[0])})"
    if better.empty:
        return told
    accuracy, _ = accuracy_and_costs(objectives)
    best = better.sort_values(accuracy.name, ascending=not accuracy.maximize).iloc[0]
    return f"{told}; the most accurate of them is trial {best['number']}, {best['backbone']} ({text(best)})"


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
