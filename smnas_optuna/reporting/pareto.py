"""What a study has found so far: its trials as a table, and the Pareto front."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.reporting.quantity import QUANTITIES, Quantity, quantity_of
from smnas_optuna.study.optuna_internals import is_enqueued

PARTS = ("input_size", "backbone", "neck", "rpn", "head")
_NUMBERS = (*QUANTITIES, "latency_spread_ms", "untrained_latency_ms", "train_seconds")
_TEXTS = ("architecture", "device", "reason")


@dataclass(frozen=True)
class Objective:
    """One objective of a study: the metric's name and whether more is better."""

    name: str
    maximize: bool

    @property
    def sign(self) -> float:
        """Factor that turns a value into a loss, which is better when lower."""
        return -1.0 if self.maximize else 1.0

    @property
    def quantity(self) -> Quantity:
        """How its values are shown."""
        return quantity_of(self.name)


def objectives_of(study: optuna.Study) -> list[Objective]:
    """Return the study's objectives in order; unnamed ones are called ``objective 0``, ``objective 1`` and so on."""
    names = study.metric_names or [f"objective {index}" for index in range(len(study.directions))]
    return [
        Objective(name, direction is StudyDirection.MAXIMIZE)
        for name, direction in zip(names, study.directions, strict=True)
    ]


def accuracy_and_costs(objectives: Sequence[Objective]) -> tuple[Objective, list[Objective]]:
    """Part the objectives into the accuracy, for the y axis, and the rest.

    The accuracy is ``map``, else the first objective that is maximised, else the first one.
    """
    preferred = [objective for objective in objectives if objective.name == "map"]
    accuracy = (preferred or [objective for objective in objectives if objective.maximize] or list(objectives))[0]
    return accuracy, [objective for objective in objectives if objective is not accuracy]


def non_dominated(losses: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mark the points that no other point dominates.

    Args:
        losses: ``n x m`` finite values of m objectives, lower is better.

    Returns:
        ``n`` flags. Equal points do not dominate each other: all of them are marked, or none.
    """
    flags = np.ones(len(losses), dtype=np.bool_)
    for index, point in enumerate(losses):
        if flags[index]:
            flags &= ~((losses >= point).all(axis=1) & (losses > point).any(axis=1))
    return flags


def trials_frame(study: optuna.Study) -> pd.DataFrame:
    """Return one row per trial, in the order of their numbers.

    Columns: ``number``, ``state`` (Optuna's name in lower case), ``is_finished`` (complete with finite values),
    ``on_front`` (see :func:`by_device` for the trials that it compares), ``enqueued`` (its parameters were given, not
    sampled: a seed of the search), a column per objective under its metric name, the parts of the architecture
    (``input_size``, ``backbone``, ``neck``, ``rpn``, ``head``, missing where the text is not an architecture) with
    ``backbone_family``, and every user attribute; those that ``run_study`` writes are there even when no trial has
    them. Where a metric and an attribute share a name, a finished trial shows its objective value, every other the
    attribute.
    """
    objectives = objectives_of(study)
    names = [objective.name for objective in objectives]
    rows = [_row(trial, names) for trial in study.get_trials(deepcopy=False)]
    frame = pd.DataFrame(rows, columns=None if rows else ["number", "state", "enqueued"])
    expected = [*names, *PARTS, "backbone_family", *_TEXTS, *_NUMBERS]
    frame = frame.reindex(columns=list(dict.fromkeys([*frame.columns, *expected])))
    for column in {*names, *_NUMBERS}:
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype(float)

    losses = frame[names].to_numpy(dtype=float) * [objective.sign for objective in objectives]
    is_finished = (frame["state"] == "complete").to_numpy(dtype=bool) & np.isfinite(losses).all(axis=1)
    on_front = np.zeros(len(frame), dtype=np.bool_)
    for comparable in by_device(frame[is_finished], names):
        on_front[comparable.index] = non_dominated(losses[comparable.index])
    frame["is_finished"], frame["on_front"] = is_finished, on_front
    return frame


def by_device(frame: pd.DataFrame, objectives: Collection[str]) -> list[pd.DataFrame]:
    """Part trials into those whose objectives can be compared: times of different devices cannot.

    Args:
        frame: Rows of :func:`trials_frame`.
        objectives: Their names.

    Returns:
        The parts, at least one; all together where inference time is no objective.
    """
    if "latency_ms" not in objectives or frame.empty:
        return [frame]
    return [trials for _, trials in frame.groupby("device", sort=False, dropna=False)]


def natural_order(label: str) -> list[tuple[int, str]]:
    """Return a key that sorts labels by the numbers in them: ``96x72`` before ``128x96``."""
    return [(int(digits or 0), text) for text, digits in re.findall(r"(\D+)|(\d+)", label.casefold())]


def pareto_front(study: optuna.Study) -> pd.DataFrame:
    """Return the rows of :func:`trials_frame` on the Pareto front, from the cheapest up.

    With one objective these are the trials that share the best value.
    """
    frame = trials_frame(study)
    _, costs = accuracy_and_costs(objectives_of(study))
    order = [cost.name for cost in costs[:1]]
    ascending = [not cost.maximize for cost in costs[:1]]
    return frame[frame["on_front"]].sort_values([*order, "number"], ascending=[*ascending, True])


def _row(trial: FrozenTrial, names: Sequence[str]) -> dict[str, object]:
    values = trial.values if trial.state is TrialState.COMPLETE else []
    return {
        **trial.user_attrs,
        **_parts(trial.user_attrs.get("architecture")),
        **dict(zip(names, values, strict=False)),
        "number": trial.number,
        "state": trial.state.name.lower(),
        "enqueued": is_enqueued(trial),
    }


def _parts(text: object) -> dict[str, object]:
    try:
        architecture = Architecture.parse(str(text))
    except ValueError:
        return {}
    backbone = architecture.backbone
    parts = {name: getattr(architecture, name) for name in PARTS}
    known: dict[str, object] = {name: None if part is None else str(part) for name, part in parts.items()}
    return known | {"backbone_family": backbone.family, "depth": backbone.depth, "width": backbone.width}
