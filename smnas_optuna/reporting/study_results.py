"""StudyResults: the trials of a study as a table, and its Pareto front, read from the database once."""

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
from smnas_optuna.search.constraints import is_feasible
from smnas_optuna.search.modular import refined_trial
from smnas_optuna.search.search import Search
from smnas_optuna.search.studies import lineage_of, search_of
from smnas_optuna.study.optuna_internals import is_enqueued

PARTS = ("input_size", "backbone", "neck", "rpn", "head")
_NUMBERS = (*QUANTITIES, "latency_spread_ms", "untrained_latency_ms", "train_seconds")
_TEXTS = ("architecture", "device", "reason", "weights")


@dataclass(frozen=True)
class Objective:
    """An objective of a study.

    Args:
        name: Name of the metric.
        maximize: Whether higher values are better.
    """

    name: str
    maximize: bool

    @property
    def sign(self) -> float:
        """Factor that turns values into losses, for which lower is better: -1 or 1."""
        return -1.0 if self.maximize else 1.0

    @property
    def quantity(self) -> Quantity:
        """How values of the objective are shown."""
        return quantity_of(self.name)


@dataclass(frozen=True, eq=False)
class StudyResults:
    """The content of a study at one moment; see :func:`results_of`.

    Args:
        name: Name of the study.
        objectives: Objectives, in the study's order. Without metric names they are called ``objective 0``,
            ``objective 1`` and so on.
        attributes: User attributes of the study.
        trials: All trials, in the order of their numbers.
        search: Search of the study; None if the study was not made by ``run_study`` or its recipe cannot be used.
        problem: One line that says why ``search`` is None; empty otherwise.
        lineage: One line that says where the architectures come from; empty if they come from a whole search space.
        refined_trial: Number of stage one's trial that a study of stage two refines; None for other studies.
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
        """Names of the objectives."""
        return [objective.name for objective in self.objectives]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A table with a row per trial, in the order of their numbers.

        Its columns are:

        - ``number`` and ``state`` (Optuna's name in lower case).
        - ``is_finished``: complete, with finite values.
        - ``is_feasible``: violates no constraint that was set on the trial.
        - ``on_front``: finished, feasible, and not dominated by another such trial, among those that
          :func:`by_device` compares.
        - ``enqueued``: created by ``study.enqueue_trial()``, such as a seed of the search.
        - A column for each objective, by the name of the metric.
        - The parts of the architecture (``input_size``, ``backbone``, ``neck``, ``rpn``, ``head``) and
          ``backbone_family``; missing if the architecture cannot be parsed.
        - A column for each user attribute. Those that ``run_study`` writes exist even if no trial has them. If an
          attribute has the name of a metric, finished trials have the metric's value, and others the attribute's.
        """
        names = self.metrics
        rows = [_row(trial, names) for trial in self.trials]
        frame = pd.DataFrame(rows, columns=None if rows else ["number", "state", "enqueued", "is_feasible"])
        expected = [*names, *PARTS, "backbone_family", *_TEXTS, *_NUMBERS]
        frame = frame.reindex(columns=list(dict.fromkeys([*frame.columns, *expected])))
        for column in {*names, *_NUMBERS}:
            frame[column] = pd.to_numeric(frame[column], errors="coerce").astype(float)

        losses = losses_of(frame, self.objectives)
        is_finished = (frame["state"] == "complete").to_numpy(dtype=bool) & np.isfinite(losses).all(axis=1)
        on_front = np.zeros(len(frame), dtype=np.bool_)
        counted = is_finished & frame["is_feasible"].to_numpy(dtype=bool)
        for comparable in by_device(frame[counted], names):
            on_front[comparable.index] = non_dominated(losses[comparable.index])
        frame["is_finished"], frame["on_front"] = is_finished, on_front
        return frame

    @property
    def finished(self) -> pd.DataFrame:
        """The rows of :attr:`frame` that are finished."""
        return self.frame[self.frame["is_finished"]]

    @property
    def front(self) -> pd.DataFrame:
        """The rows of :attr:`frame` on the Pareto front, the cheapest first.

        With a single objective these are all trials with the best value.
        """
        _, costs = accuracy_and_costs(self.objectives)
        order = [cost.name for cost in costs[:1]]
        ascending = [not cost.maximize for cost in costs[:1]]
        return self.frame[self.frame["on_front"]].sort_values([*order, "number"], ascending=[*ascending, True])


def results_of(study: optuna.Study) -> StudyResults:
    """Read the trials and the search of a study. This imports the modules that its recipe imports."""
    names = study.metric_names or [f"objective {index}" for index in range(len(study.directions))]
    objectives = [
        Objective(name, direction is StudyDirection.MAXIMIZE)
        for name, direction in zip(names, study.directions, strict=True)
    ]
    search, problem = None, ""
    try:
        search = search_of(study)
    except UserError as error:
        # Studies that are no searches of this package have results, too.
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
    """Split objectives into the accuracy, which figures show along y, and the others.

    The accuracy is ``map`` if it is an objective, otherwise the first objective that is maximised, otherwise the first.
    """
    preferred = [objective for objective in objectives if objective.name == "map"]
    accuracy = (preferred or [objective for objective in objectives if objective.maximize] or list(objectives))[0]
    return accuracy, [objective for objective in objectives if objective is not accuracy]


def study_in_memory(directions: Sequence[StudyDirection], trials: Sequence[FrozenTrial]) -> optuna.Study:
    """Return a new in-memory study with the given trials, for functions that take a study only."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # otherwise the creation of the study is logged
    try:
        study = optuna.create_study(directions=directions)
    finally:
        optuna.logging.set_verbosity(verbosity)
    study.add_trials(trials)
    return study


def losses_of(trials: pd.DataFrame, objectives: Sequence[Objective]) -> NDArray[np.float64]:
    """Return the values of objectives as losses (lower is better), shape ``trials x objectives``."""
    values = trials[[objective.name for objective in objectives]].to_numpy(dtype=float)
    return values * [objective.sign for objective in objectives]


def by_device(frame: pd.DataFrame, objectives: Collection[str]) -> list[pd.DataFrame]:
    """Split trials into groups with comparable objectives: inference times of different devices are not comparable.

    Args:
        frame: Rows of :attr:`StudyResults.frame`.
        objectives: Names of the objectives.

    Returns:
        A group for each device if ``latency_ms`` is an objective, otherwise a single group; at least one group.
    """
    if "latency_ms" not in objectives or frame.empty:
        return [frame]
    return [trials for _, trials in frame.groupby("device", sort=False, dropna=False)]


def natural_order(label: str) -> list[tuple[int, str]]:
    """Return a sort key that orders labels by the numbers in them, so that ``96x72`` comes before ``128x96``."""
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
        "is_feasible": is_feasible(trial),
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
