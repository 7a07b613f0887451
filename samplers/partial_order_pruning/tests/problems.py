"""Small problems for tests: grids of architectures whose accuracy and cost are known."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Key = tuple[int, ...]


class Grid:
    """Accuracy (to maximise) and cost (to minimise) of every architecture in a grid of capacities.

    The first index is the group; the others are capacities.
    """

    def __init__(self, accuracy: Floats, cost: Floats) -> None:
        self.accuracy, self.cost = accuracy, cost
        self.keys: list[Key] = list(np.ndindex(accuracy.shape))

    @classmethod
    def monotone(cls, seed: int, shape: tuple[int, ...]) -> "Grid":
        rng = np.random.default_rng(seed)
        tables = []
        for table in (rng.integers(0, 12, shape).astype(float), rng.integers(0, 12, shape).astype(float)):
            for axis in range(1, len(shape)):
                table = np.maximum.accumulate(table, axis=axis)
            tables.append(table)
        return cls(*tables)

    @classmethod
    def additive(cls, seed: int, shape: tuple[int, ...]) -> "Grid":
        rng = np.random.default_rng(seed)
        places = np.indices(shape)[1:]
        gains, costs = rng.uniform(0.2, 1.0, len(places)), rng.uniform(0.2, 1.0, len(places))
        size = np.tensordot(gains, np.sqrt(places), axes=1)
        return cls(
            1 - np.exp(-size) + 0.1 * rng.random(shape[0]).reshape(-1, *[1] * len(places)),
            0.1 + np.tensordot(costs, places, axes=1),
        )

    def search_space(self, trial: Any) -> Key:
        group = trial.suggest_categorical("group", list(range(self.accuracy.shape[0])))
        capacities = (
            trial.suggest_int(f"capacity{axis}", 0, n_levels - 1)
            for axis, n_levels in enumerate(self.accuracy.shape[1:])
        )
        return (group, *capacities)

    @staticmethod
    def order(key: Key) -> tuple[int, Key]:
        return key[0], key[1:]

    def values(self, key: Key) -> tuple[float, float]:
        return float(self.accuracy[key]), float(self.cost[key])

    def known(self) -> dict[int, Callable[[Key], float]]:
        return {1: lambda key: float(self.cost[key])}

    def objective(self, trial: optuna.Trial) -> tuple[float, float]:
        return self.values(self.search_space(trial))

    def pareto_keys(self) -> set[Key]:
        points = np.array([self.values(key) for key in self.keys])
        at_least = (points[:, None, 0] >= points[None, :, 0]) & (points[:, None, 1] <= points[None, :, 1])
        better = (points[:, None, 0] > points[None, :, 0]) | (points[:, None, 1] < points[None, :, 1])
        return {key for key, beaten in zip(self.keys, np.any(at_least & better, axis=0), strict=True) if not beaten}

    def hypervolume(self, values: list[tuple[float, float]]) -> float:
        """Return the area that (accuracy, cost) points dominate, both scaled to the grid's range."""
        scaled = sorted(
            ((cost - self.cost.min()) / np.ptp(self.cost), -(accuracy - self.accuracy.min()) / np.ptp(self.accuracy))
            for accuracy, cost in values
        )
        area, best = 0.0, 0.0
        for cost, loss in scaled:
            area += max(-loss - best, 0.0) * (1.0 - cost)
            best = max(best, -loss)
        return area


def create_study(sampler: optuna.samplers.BaseSampler, **options: Any) -> optuna.Study:
    return optuna.create_study(directions=["maximize", "minimize"], sampler=sampler, **options)
