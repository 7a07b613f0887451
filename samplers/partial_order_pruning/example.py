"""Searches a small space of networks for trade-offs between accuracy and a cost that is known before training.

    python example.py

It loads the sampler from this file's folder. With optunahub, load it from a checkout with
``optunahub.load_local_module("samplers/partial_order_pruning", registry_root=".").PartialOrderPruningSampler``, or with
``optunahub.load_module("samplers/partial_order_pruning")`` once OptunaHub's registry has it.
"""

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import optuna

FOLDER = Path(__file__).parent


def load_sampler() -> Any:
    """Return the sampler's class, from this file's folder."""
    spec = importlib.util.spec_from_file_location("partial_order_pruning", FOLDER / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.PartialOrderPruningSampler


def suggest(trial: Any) -> tuple[str, int, int, int]:
    """Suggest a network: kind of block, depth, width and input resolution."""
    block = trial.suggest_categorical("block", ["basic", "bottleneck"])
    depth = trial.suggest_int("depth", 2, 12)
    width = trial.suggest_int("width", 16, 128, step=16)
    return block, depth, width, trial.suggest_int("resolution", 128, 512, step=32)


def order(network: tuple[str, int, int, int]) -> tuple[str, tuple[int, int, int]]:
    """Return (group, vector): networks with one kind of block are compared by depth, width and resolution."""
    block, *capacities = network
    return block, (capacities[0], capacities[1], capacities[2])


def cost(network: tuple[str, int, int, int]) -> float:
    """Return the network's GFLOPs, which are known without training."""
    block, depth, width, resolution = network
    return (9.0 if block == "basic" else 5.0) * 1e-9 * depth * width**2 * resolution**2


def train(network: tuple[str, int, int, int]) -> float:
    """Return the network's accuracy, by a formula instead of a training."""
    block, depth, width, resolution = network
    capacity = 0.08 * depth + 0.01 * width + 0.003 * resolution
    return (0.9 if block == "basic" else 0.87) - math.exp(-capacity)


def objective(trial: optuna.Trial) -> tuple[float, float]:
    """Return accuracy and cost of a suggested network."""
    network = suggest(trial)
    return train(network), cost(network)


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = load_sampler()(suggest, order, known_objectives={1: cost}, seed=0)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.optimize(objective, n_trials=50)
    print("accuracy   GFLOPs  network")
    for trial in sorted(study.best_trials, key=lambda trial: trial.values[1]):
        print(f"{trial.values[0]:8.3f} {trial.values[1]:8.3f}  {trial.params}")
    violations, pairs = sampler.order_violations(study)[0]
    print(f"order of accuracy violated by {violations} of {pairs} comparable pairs")
