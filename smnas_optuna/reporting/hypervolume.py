"""Hypervolume: how much of the objectives' space a study's front dominates, beside that of its starting detectors."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.errors import UserError
from smnas_optuna.reporting.pareto import objectives_of
from smnas_optuna.search.studies import search_of
from smnas_optuna.study.trial_outcome import counts_toward_total

# The reference point lies at so many times the largest cost of a starting detector.
_COST_MARGIN = 2.0


@dataclass(frozen=True)
class Hypervolume:
    """The hypervolume of a study over its course.

    Args:
        numbers: Finished trials, in order.
        values: The hypervolume after each of them, as a multiple of what ``basis`` names.
        reference: The reference point, one value per objective.
        basis: Whose hypervolume is 1, such as ``that of the 3 starting detectors``; empty where 1 is the box between
            the worst and the best value seen of each objective.
    """

    numbers: tuple[int, ...]
    values: tuple[float, ...]
    reference: tuple[float, ...]
    basis: str

    @property
    def number(self) -> str:
        """The study's hypervolume, to be followed by :attr:`remark`."""
        return f"{self.values[-1]:.2f} times" if self.basis else f"{self.values[-1]:.0%}"

    @property
    def remark(self) -> str:
        """What :attr:`number` is a multiple or a share of."""
        return self.basis or "of the range of values seen so far"


def measure_hypervolume(study: optuna.Study) -> Hypervolume | None:
    """Measure a study's hypervolume relative to that of its starting detectors.

    Starting detectors are those that the search evaluates first, in the stage ``transfer`` the baselines, see
    :attr:`~smnas_optuna.search.search.Search.references`. The reference point has an accuracy of 0 and twice their
    largest cost. So it stays where it is while the search goes on, for every worker and after a restart, and a detector
    that costs more than that does not count.

    Until all of them have been evaluated, and in a study that has none, the hypervolume is a share instead: of the box
    between the worst and the best value that each objective took. That box grows with what is found.

    Returns:
        The hypervolume; None with a single objective, without a finished trial, and over times of several devices.
    """
    objectives = objectives_of(study)
    trials = study.get_trials(deepcopy=False)
    finished = [
        trial for trial in trials if trial.state == TrialState.COMPLETE and all(map(math.isfinite, trial.values))
    ]
    is_timed = any(objective.name == "latency_ms" for objective in objectives)
    devices = {trial.user_attrs["device"] for trial in finished if "device" in trial.user_attrs}
    if len(objectives) < 2 or not finished or (is_timed and len(devices) > 1):
        return None
    starts, basis = _starting_trials(study, trials, finished)
    if starts:
        costs = np.max([trial.values for trial in starts], axis=0) * _COST_MARGIN
        reference = [
            0.0 if objective.maximize else float(cost) for objective, cost in zip(objectives, costs, strict=True)
        ]
        part = optuna.create_study(directions=study.directions)
        part.add_trials(starts)
        if whole := _history(part, reference)[1][-1]:
            return _relative(study, reference, whole, basis)
    signs = np.array([objective.sign for objective in objectives])
    losses = np.array([trial.values for trial in finished]) * signs
    worst = losses.max(axis=0)
    box = float(np.prod(worst - losses.min(axis=0)))
    # Without any extent there is nothing to dominate.
    return _relative(study, [float(value) for value in worst * signs], box or 1.0, "")


def hypervolume_text(study: optuna.Study) -> str:
    """Return a study's hypervolume for a line of text; empty where :func:`measure_hypervolume` has none."""
    measured = measure_hypervolume(study)
    return f"{measured.number} {measured.remark}" if measured else ""


def _starting_trials(
    study: optuna.Study, trials: Sequence[FrozenTrial], finished: Sequence[FrozenTrial]
) -> tuple[list[FrozenTrial], str]:
    """Return the finished trials of the starting detectors, once all have ended, and how to call their hypervolume."""
    try:
        search = search_of(study)
    except UserError:
        return [], ""
    wanted = {str(architecture) for architecture in search.references}
    ended = {
        trial.user_attrs.get("architecture")
        for trial in trials
        if counts_toward_total(trial) or trial.state == TrialState.PRUNED
    }
    running = {trial.user_attrs.get("architecture") for trial in trials if trial.state == TrialState.RUNNING}
    if not wanted <= ended - running:
        return [], ""
    starts = [trial for trial in finished if trial.user_attrs.get("architecture") in wanted]
    noun = search.reference_noun
    return starts, f"that of the {noun}" if len(starts) == 1 else f"that of the {len(starts)} {noun}s"


def _relative(study: optuna.Study, reference: list[float], whole: float, basis: str) -> Hypervolume:
    numbers, values = _history(study, reference)
    return Hypervolume(tuple(numbers), tuple(value / whole for value in values), tuple(reference), basis)


def _history(study: optuna.Study, reference: list[float]) -> tuple[list[int], list[float]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        history = optuna.visualization.plot_hypervolume_history(study, reference).data[0]
    return list(history.x), [float(value) for value in history.y]
