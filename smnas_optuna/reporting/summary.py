"""What a search tells at its end: the front as a table, what stage two has gained, how transferred detectors do."""

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


def transfer_table(search: Search, study: optuna.Study) -> Table:
    """Return what a transfer has trained as a table for the terminal, beside the first baseline (SM-NAS, Table 5).

    Accuracy is told with its distance from the first baseline's, time with its ratio to it; the most accurate comes
    first.
    """
    assert search.transferred is not None
    frame = trials_frame(study)
    frame = frame[frame["is_finished"]]
    accuracy = accuracy_and_costs(objectives_of(study))[0].name
    metrics = dict.fromkeys([accuracy, "map", "latency_ms", "params"])
    table = Table(title=f"Detectors of {study.study_name}")
    for heading in ("trial", *(_HEADINGS.get(name, name) for name in metrics)):
        table.add_column(heading, justify="right")
    for heading in ("architecture", "from", "trained from"):
        table.add_column(heading)
    origins = {
        str(each.architecture): (each.source, search.start(each.architecture.backbone)) for each in search.transferred
    }
    references = [str(architecture) for architecture in search.references]
    baseline = frame[frame["architecture"].isin(references[:1])]
    for row in frame.sort_values(accuracy, ascending=False).to_dict("records"):
        values = {
            name: quantity_of(name).text_with_spread(row[name], row["latency_spread_ms"] if "latency" in name else None)
            for name in metrics
        }
        if not baseline.empty and row["architecture"] not in references[:1]:
            values[accuracy] += f" ({row[accuracy] - baseline[accuracy].iloc[0]:+.3f})"
            values["latency_ms"] += f" ({row['latency_ms'] / baseline['latency_ms'].iloc[0]:.2f} x)"
        table.add_row(str(row["number"]), *values.values(), row["architecture"], *origins[row["architecture"]])
    return table
