"""Columns of tables of trials, the same in the terminal, the report and the dashboard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from smnas_optuna.reporting.quantity import MISSING, measured_text, quantity_of
from smnas_optuna.reporting.study_results import PARTS, Objective
from smnas_optuna.training.job import SCRATCH

PART_TITLES: Final = dict(zip(PARTS, ("input size", "backbone", "neck", "RPN", "head"), strict=True))
_TEXTS: Final = {
    "number": "trial",
    "device": "device",
    "weights": "trained from",
    "architecture": "architecture",
    **PART_TITLES,
}
_COSTS: Final = ("latency_ms", "flops", "params")


@dataclass(frozen=True)
class Column:
    """A column of a table of trials.

    Args:
        name: Name of the column in ``StudyResults.frame``.
    """

    name: str

    @property
    def heading(self) -> str:
        """Heading of the column, with the unit."""
        return _TEXTS.get(self.name) or quantity_of(self.name).heading

    @property
    def is_number(self) -> bool:
        """Whether the cells are numbers, which are right-aligned."""
        return self.name == "number" or self.name not in _TEXTS

    def text(self, trial: Mapping[Any, Any]) -> str:
        """Return the text of a trial's cell; an en dash if the value is missing."""
        if self.name not in _TEXTS:
            return measured_text(self.name, trial)
        value = str(trial["number"]) if self.name == "number" else trial[self.name]
        return value if isinstance(value, str) and value else MISSING


def metric_columns(precisions: Sequence[str], objectives: Sequence[Objective]) -> list[Column]:
    """Return the columns of a front's metrics: average precisions, costs and other objectives.

    Args:
        precisions: Names of the average precisions to show, such as ``map``.
        objectives: Objectives of the study.
    """
    names = [*precisions, *_COSTS, *(objective.name for objective in objectives)]
    return [Column(name) for name in dict.fromkeys(names)]


def detector_columns(trials: pd.DataFrame) -> list[Column]:
    """Return the columns that identify a detector: the architecture, the device if there are several, and the weights.

    What detectors were trained from is left out if none had pre-trained weights.
    """
    names = ["device"] if trials["device"].nunique() > 1 else []
    if has_pretrained(trials):
        names.append("weights")
    return [Column(name) for name in (*names, "architecture")]


def has_pretrained(trials: pd.DataFrame) -> bool:
    """Return whether some trials started from pre-trained weights."""
    return bool(trials["weights"].dropna().ne(SCRATCH).any())
