"""The Optuna samplers that a recipe or ``--sampler`` can name."""

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
    """Create a sampler by its name.

    All arguments but ``name`` and ``seed`` are for ``pop`` only; see :class:`PartialOrderPruningSampler`.

    Args:
        name: ``pop``, ``nsga2``, ``tpe`` or ``random``.
        seed: Seed for random numbers; None for a random seed.
        search_space: ``trial -> architecture``; the other samplers learn the space from the trials.
        order: ``architecture -> (group, vector)``.
        known_objectives: ``{objective index: architecture -> value}`` for values that are known before training.
        n_startup_trials: Number of trials before the surrogate model is used.
        exclusive: Whether the caller ensures that only one worker at a time asks for a trial.
    """
    if name == "pop":
        return PartialOrderPruningSampler(
            search_space, order, known_objectives, n_startup_trials=n_startup_trials, exclusive=exclusive, seed=seed
        )
    return _SAMPLERS[name](seed)
