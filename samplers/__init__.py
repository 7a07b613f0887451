"""Optuna samplers that a search can choose from."""

from collections.abc import Callable

import optuna

_SAMPLERS: dict[str, Callable[[int | None], optuna.samplers.BaseSampler]] = {
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def create_sampler(name: str, seed: int | None = None) -> optuna.samplers.BaseSampler:
    """Return the sampler called ``nsga2``, ``tpe`` or ``random``.

    Args:
        name: The sampler.
        seed: For its random numbers; None for others each time.
    """
    return _SAMPLERS[name](seed)
