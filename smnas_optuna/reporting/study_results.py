"""What a study has found so far, read from its database once: its trials as a table, and the Pareto front."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.reporting.quantity import QUANTITIES, Quantity, quantity_of
from smnas_optuna.samplers.partial_order_pruning.dominance import non_dominated
from smnas_optuna.search.modular import refined_trial
from smnas_optuna.search.search import Search
from smnas_optuna.search.studies import lineage_of, search_of
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


@dataclass(frozen=True, eq=False)
class StudyResults:
    """What a study holds at one moment; see :func:`results_of`.

    Args:
        name: The study's.
        objectives: In order; unnamed ones are called ``objective 0``, ``objective 1`` and so on.
        attributes: The study's user attributes.
        trials: All trials, in the order of their numbers.
        search: What the study searches; None if that cannot be told.
        problem: Why it cannot, in one line.
        lineage: Where the architectures come from, if not from a whole space; one line.
        refined_trial: Number of stage one's trial that a study of stage two refines; None for another study.
    """

    name: str
    objectives: tuple[Objective, ...]
    attributes: Mapping[str, Any]
    trials: tuple[FrozenTrial, ...]
    search: Search | None
    problem: str = ""
    lineage: str = ""
    refined_trial: int | None = None

    @property
    def metrics(self) -> list[str]:
        """The names of the objectives."""
        return [objective.name for objective in self.objectives]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per trial, in the order of their numbers.

        Columns: ``number``, ``state`` (Optuna's name in lower case), ``is_finished`` (complete with finite values),
        ``on_front`` (see :func:`by_device` for the trials that it compares), ``enqueued`` (its parameters were given,
        not sampled: a seed of the search), a column per objective under its metric name, the parts of the architecture
        (``input_size``, ``backbone``, ``neck``, ``rpn``, ``head``, missing where the text is not an architecture) with
        ``backbone_family``, and every user attribute; those that ``run_study`` writes are there even when no trial has
        them. Where a metric and an attribute share a name, a finished trial shows its objective value, every other the
        attribute.
        """
        names = self.metrics
        rows = [_row(trial, names) for trial in self.trials]
        frame = pd.DataFrame(rows, columns=None if rows else ["number", "state", "enqueued"])
        expected = [*names, *PARTS, "backbone_family", *_TEXTS, *_NUMBERS]
        frame = frame.reindex(columns=list(dict.fromkeys([*frame.columns, *expected])))
        for column in {*names, *_NUMBERS}:
            frame[column] = pd.to_numeric(frame[column], errors="coerce").astype(float)

        losses = losses_of(frame, self.objectives)
        is_finished = (frame["state"] == "complete").to_numpy(dtype=bool) & np.isfinite(losses).all(axis=1)
        on_front = np.zeros(len(frame), dtype=np.bool_)
        for comparable in by_device(frame[is_finished], names):
            on_front[comparable.index] = non_dominated(losses[comparable.index])
        frame["is_finished"], frame["on_front"] = is_finished, on_front
        return frame

    @property
    def finished(self) -> pd.DataFrame:
        """The rows of :attr:`frame` that are finished."""
        return self.frame[self.frame["is_finished"]]

    @property
    def front(self) -> pd.DataFrame:
        """The rows of :attr:`frame` on the Pareto front, from the cheapest up.

        With one objective these are the trials that share the best value.
        """
        _, costs = accuracy_and_costs(self.objectives)
        order = [cost.name for cost in costs[:1]]
        ascending = [not cost.maximize for cost in costs[:1]]
        return self.frame[self.frame["on_front"]].sort_values([*order, "number"], ascending=[*ascending, True])


def results_of(study: optuna.Study) -> StudyResults:
    """Read what a study has found so far, and what it searches; importing what its recipe imports."""
    names = study.metric_names or [f"objective {index}" for index in range(len(study.directions))]
    objectives = [
        Objective(name, direction is StudyDirection.MAXIMIZE)
        for name, direction in zip(names, study.directions, strict=True)
    ]
    search, problem = None, ""
    try:
        search = search_of(study)
    except UserError as error:
        # Any study of Optuna has results.
        problem = str(error)
    trials = study.get_trials(deepcopy=False)
    return StudyResults(
        study.study_name,
        tuple(objectives),
        study.user_attrs,
        tuple(trials),
        search,
        problem,
        lineage_of(study),
        refined_trial(study),
    )


def accuracy_and_costs(objectives: Sequence[Objective]) -> tuple[Objective, list[Objective]]:
    """Part the objectives into the accuracy, for the y axis, and the rest.

    The accuracy is ``map``, else the first objective that is maximised, else the first one.
    """
    preferred = [objective for objective in objectives if objective.name == "map"]
    accuracy = (preferred or [objective for objective in objectives if objective.maximize] or list(objectives))[0]
    return accuracy, [objective for objective in objectives if objective is not accuracy]


def study_in_memory(directions: Sequence[StudyDirection], trials: Sequence[FrozenTrial]) -> optuna.Study:
    """Return a study that holds trials, for what takes a study only."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it announces itself
    try:
        study = optuna.create_study(directions=directions)
    finally:
        optuna.logging.set_verbosity(verbosity)
    study.add_trials(trials)
    return study


def losses_of(trials: pd.DataFrame, objectives: Sequence[Objective]) -> NDArray[np.float64]:
    """Return the values of objectives as losses, shape ``trials x objectives``."""
    values = trials[[objective.name for objective in objectives]].to_numpy(dtype=float)
    return values * [objective.sign for objective in objectives]


def by_device(frame: pd.DataFrame, objectives: Collection[str]) -> list[pd.DataFrame]:
    """Part trials into those whose objectives can be compared: times of different devices cannot.

    Args:
        frame: Rows of :attr:`StudyResults.frame`.
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
