"""Hypervolume that a study's Pareto front dominates, relative to that of the starting detectors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.reporting.study_results import Objective, StudyResults
from smnas_optuna.samplers.partial_order_pruning.dominance import dominates, weakly_dominates
from smnas_optuna.samplers.partial_order_pruning.expected_improvement import (
    expected_hypervolume_improvement,
    non_dominated_boxes,
)
from smnas_optuna.search.constraints import is_feasible
from smnas_optuna.study.trial_outcome import counts_toward_total

# Cost of the reference point, as a multiple of the largest cost of a starting detector.
_COST_MARGIN = 2.0


@dataclass(frozen=True)
class Hypervolume:
    """The hypervolume of a study after each finished trial.

    Args:
        numbers: Numbers of the finished trials, ascending.
        values: Hypervolume after each of these trials, as a multiple of the hypervolume that ``basis`` describes.
        objectives: Objectives of the study.
        reference: Reference point, with one value per objective.
        basis: Description of the hypervolume that is 1, such as ``that of the 3 starting detectors``. Empty if it is
            the box between the worst and the best value of each objective so far.
    """

    numbers: tuple[int, ...]
    values: tuple[float, ...]
    objectives: tuple[Objective, ...]
    reference: tuple[float, ...]
    basis: str

    @property
    def number(self) -> str:
        """The final hypervolume as text, such as ``1.31 times`` or ``62%``; :attr:`remark` says of what."""
        return f"{self.values[-1]:.2f} times" if self.basis else f"{self.values[-1]:.0%}"

    @property
    def remark(self) -> str:
        """What :attr:`number` is a multiple or share of."""
        return self.basis or "of the range of values seen so far"

    def __str__(self) -> str:
        return f"{self.number} {self.remark}"

    @property
    def reference_text(self) -> str:
        """A sentence that describes the reference point."""
        parts = ", ".join(
            f"{objective.quantity.title} {objective.quantity.text_with_unit(value)}"
            for objective, value in zip(self.objectives, self.reference, strict=True)
        )
        if self.basis:
            return f"Reference point: {parts}; detectors that cost more do not count"
        return f"Reference point, the worst values so far: {parts}"


def measure_hypervolume(results: StudyResults) -> Hypervolume | None:
    """Measure a study's hypervolume relative to that of its starting detectors.

    Starting detectors are those that the search evaluates first, in the stage ``transfer`` the baselines, see
    :attr:`~smnas_optuna.search.search.Search.references`. The reference point has an accuracy of 0 and twice their
    largest cost. It is therefore the same during the whole search, for all workers and after a restart. Detectors that
    cost more do not count.

    Until all starting detectors have been evaluated, and in a study without any, the hypervolume is a share of the box
    between the worst and the best value of each objective so far. That box grows during the search.

    Returns:
        The hypervolume; None if the study has a single objective, no finished trial, inference times of several
        devices as an objective, or trains a list without a baseline.
    """
    objectives = results.objectives
    finished = [
        trial
        for trial in results.trials
        if trial.state == TrialState.COMPLETE and all(map(math.isfinite, trial.values))
    ]
    devices = {trial.user_attrs["device"] for trial in finished if "device" in trial.user_attrs}
    is_comparable = len(devices) <= 1 or "latency_ms" not in results.metrics
    search = results.search
    is_list = search is not None and bool(search.origins) and not search.references
    if len(objectives) < 2 or not finished or not is_comparable or is_list:
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
        # The box is empty if all trials have the same value of an objective.
        whole = float(np.prod(np.ptp(losses, axis=0))) or 1.0
    # Trials that violate a constraint do not count.
    counts = np.array([is_feasible(trial) for trial in finished])
    values = hypervolume_history(np.where(counts[:, None], losses, np.inf), reference * signs) / whole
    numbers = tuple(trial.number for trial in finished)
    return Hypervolume(numbers, tuple(values.tolist()), objectives, tuple(reference.tolist()), basis)


def hypervolume_history(losses: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the hypervolume that the first k points dominate together, for each k.

    Args:
        losses: Points, shape (n, m); lower is better.
        reference: Reference point, shape (m,). Points beyond it do not count.

    Returns:
        Hypervolumes, shape (n,), never decreasing.
    """
    exact, unbounded = np.zeros((1, len(reference))), np.full((1, len(reference)), np.inf)
    front = np.empty((0, len(reference)))
    boxes = non_dominated_boxes(front, reference)
    added = np.zeros(len(losses))
    for index, point in enumerate(losses):
        if np.any(weakly_dominates(front, point)):
            continue
        # With a standard deviation of 0 the expected improvement is the improvement.
        added[index] = expected_hypervolume_improvement(boxes, point[None], exact, -unbounded, unbounded)[0]
        if added[index] > 0:
            front = np.vstack([front[~dominates(point, front)], point])
            boxes = non_dominated_boxes(front, reference)
    return np.cumsum(added)


def hypervolume_text(results: StudyResults) -> str:
    """Return a study's hypervolume as text; empty if :func:`measure_hypervolume` returns None."""
    return str(measure_hypervolume(results) or "")


def _losses(trials: Sequence[FrozenTrial], signs: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([trial.values for trial in trials]) * signs


def _starting_trials(results: StudyResults, finished: Sequence[FrozenTrial]) -> tuple[list[FrozenTrial], str]:
    """Return the finished trials of the starting detectors, and the description of their hypervolume.

    Both are empty until the trials of all starting detectors have ended.
    """
    if results.search is None:
        return [], ""
    references = {str(architecture) for architecture in results.search.references}
    ended = {
        trial.user_attrs.get("architecture")
        for trial in results.trials
        if counts_toward_total(trial) or trial.state == TrialState.PRUNED
    }
    running = {trial.user_attrs.get("architecture") for trial in results.trials if trial.state == TrialState.RUNNING}
    if not references <= ended - running:
        return [], ""
    starts = [trial for trial in finished if trial.user_attrs.get("architecture") in references]
    noun = results.search.reference_noun
    return starts, f"that of the {noun}" if len(starts) == 1 else f"that of the {len(starts)} {noun}s"
