"""Optuna samplers that a search can choose from."""

from collections.abc import Callable, Mapping
from typing import Any

import optuna

from smnas_optuna.samplers.partial_order_pruning import PartialOrderPruningSampler

__all__ = ["PartialOrderPruningSampler", "create_sampler"]

_SAMPLERS: dict[str, Callable[[int | None], optuna.samplers.BaseSampler]] = {
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def create_sampler(
    name: str,
    seed: int | None = None,
    search_space: Callable[[Any], Any] | None = None,
    order: Callable[[Any], Any] | None = None,
    known_objectives: Mapping[int, Callable[[Any], float]] | None = None,
    n_startup_trials: int = 10,
    *,
    exclusive: bool = False,
) -> optuna.samplers.BaseSampler:
    """Return the sampler called ``pop``, ``nsga2``, ``tpe`` or ``random``.

    Args:
        name: The sampler.
        seed: For its random numbers; None for others each time.
        search_space: ``trial -> architecture``, for ``pop`` only: the others learn it from the trials.
        order: ``architecture -> (group, vector)``, for ``pop`` only.
        known_objectives: What is known before training, by the objective's index, for ``pop`` only.
        n_startup_trials: Trials before those of the surrogate model, for ``pop`` only.
        exclusive: Whether the caller lets one worker at a time ask, for ``pop`` only.
    """
    if name == "pop":
        return PartialOrderPruningSampler(
            search_space, order, known_objectives, n_startup_trials=n_startup_trials, exclusive=exclusive, seed=seed
        )
    return _SAMPLERS[name](seed)
