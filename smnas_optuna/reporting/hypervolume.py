"""Hypervolume: how much of the objectives' space a study's front dominates, beside that of its starting detectors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.reporting.study_results import Objective, StudyResults, results_of
from smnas_optuna.samplers.partial_order_pruning.dominance import dominates, weakly_dominates
from smnas_optuna.samplers.partial_order_pruning.expected_improvement import (
    expected_hypervolume_improvement,
    non_dominated_boxes,
)
from smnas_optuna.study.trial_outcome import counts_toward_total

# The reference point lies at so many times the largest cost of a starting detector.
_COST_MARGIN = 2.0


@dataclass(frozen=True)
class Hypervolume:
    """The hypervolume of a study over its course.

    Args:
        numbers: Finished trials, in order.
        values: The hypervolume after each of them, as a multiple of what ``basis`` names.
        objectives: The study's.
        reference: The reference point, one value per objective.
        basis: Whose hypervolume is 1, such as ``that of the 3 starting detectors``; empty where 1 is the box between
            the worst and the best value seen of each objective.
    """

    numbers: tuple[int, ...]
    values: tuple[float, ...]
    objectives: tuple[Objective, ...]
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

    def __str__(self) -> str:
        return f"{self.number} {self.remark}"

    @property
    def reference_text(self) -> str:
        """Which reference point it is measured from."""
        parts = ", ".join(
            f"{objective.quantity.title} {objective.quantity.text_with_unit(value)}"
            for objective, value in zip(self.objectives, self.reference, strict=True)
        )
        if self.basis:
            return f"Reference point: {parts}; what costs more does not count"
        return f"Reference point, the worst values seen: {parts}"


def measure_hypervolume(results: StudyResults) -> Hypervolume | None:
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
    objectives = results.objectives
    finished = [
        trial
        for trial in results.trials
        if trial.state == TrialState.COMPLETE and all(map(math.isfinite, trial.values))
    ]
    devices = {trial.user_attrs["device"] for trial in finished if "device" in trial.user_attrs}
    is_comparable = len(devices) <= 1 or "latency_ms" not in results.metrics
    if len(objectives) < 2 or not finished or not is_comparable:
        return None
    signs = np.array([objective.sign for objective in objectives])
    losses = _losses(finished, signs)
    starts, basis = _starting_trials(results, finished)
    whole = 0.0
    if starts:
        costs = np.max([trial.values for trial in starts], axis=0) * _COST_MARGIN
        reference = np.where([objective.maximize for objective in objectives], 0.0, costs)
        whole = hypervolume_history(_losses(starts, signs), reference * signs)[-1]
    if not whole:
        reference, basis = losses.max(axis=0) * signs, ""
        # Without any extent there is nothing to dominate.
        whole = float(np.prod(np.ptp(losses, axis=0))) or 1.0
    # What violates a constraint dominates nothing.
    is_feasible = [all(excess <= 0 for excess in trial.constraints.values()) for trial in finished]
    values = hypervolume_history(np.where(np.array(is_feasible)[:, None], losses, np.inf), reference * signs) / whole
    numbers = tuple(trial.number for trial in finished)
    return Hypervolume(numbers, tuple(values.tolist()), objectives, tuple(reference.tolist()), basis)


def hypervolume_history(losses: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the hypervolume that points dominate together, after each of them.

    Args:
        losses: Shape (n, m), lower is better.
        reference: The reference point, shape (m,); points beyond it do not count.

    Returns:
        Shape (n,); it never falls.
    """
    exact, unbounded = np.zeros((1, len(reference))), np.full((1, len(reference)), np.inf)
    front = np.empty((0, len(reference)))
    boxes = non_dominated_boxes(front, reference)
    added = np.zeros(len(losses))
    for index, point in enumerate(losses):
        if np.any(weakly_dominates(front, point)):
            continue
        # Without a deviation the expected improvement is the improvement.
        added[index] = expected_hypervolume_improvement(boxes, point[None], exact, -unbounded, unbounded)[0]
        if added[index] > 0:
            front = np.vstack([front[~dominates(point, front)], point])
            boxes = non_dominated_boxes(front, reference)
    return np.cumsum(added)


def hypervolume_text(study: optuna.Study) -> str:
    """Return a study's hypervolume for a line of text; empty where :func:`measure_hypervolume` has none."""
    return str(measure_hypervolume(results_of(study)) or "")


def _losses(trials: Sequence[FrozenTrial], signs: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([trial.values for trial in trials]) * signs


def _starting_trials(results: StudyResults, finished: Sequence[FrozenTrial]) -> tuple[list[FrozenTrial], str]:
    """Return the finished trials of the starting detectors, once all have ended, and how to call their hypervolume."""
    if results.search is None:
        return [], ""
    wanted = {str(architecture) for architecture in results.search.references}
    ended = {
        trial.user_attrs.get("architecture")
        for trial in results.trials
        if counts_toward_total(trial) or trial.state == TrialState.PRUNED
    }
    running = {trial.user_attrs.get("architecture") for trial in results.trials if trial.state == TrialState.RUNNING}
    if not wanted <= ended - running:
        return [], ""
    starts = [trial for trial in finished if trial.user_attrs.get("architecture") in wanted]
    noun = results.search.reference_noun
    return starts, f"that of the {noun}" if len(starts) == 1 else f"that of the {len(starts)} {noun}s"
