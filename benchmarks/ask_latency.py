"""Time that samplers take for a proposal, depending on the number of finished trials.

The study has twenty parameters (ten integers, eight floats, two categories), two objectives and in-memory storage. It
is filled with random trials. Then the sampler proposes further trials: the benchmark prints the median and the largest
time, in milliseconds, of ``study.ask()`` together with the suggestion of all parameters.

    python benchmarks/ask_latency.py [--trials 1000 10000] [--asks 30] [--samplers NAME ...]
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from smnas_optuna.samplers import PartialOrderPruningSampler

SPACE: dict[str, BaseDistribution] = {
    **{f"depth{i}": IntDistribution(1, 8) for i in range(10)},
    **{f"width{i}": FloatDistribution(0.25, 2.0) for i in range(8)},
    "block": CategoricalDistribution(["basic", "bottleneck", "inverted"]),
    "activation": CategoricalDistribution(["relu", "silu"]),
}


def suggest(trial: Any) -> dict[str, Any]:
    params: dict[str, Any] = {f"depth{i}": trial.suggest_int(f"depth{i}", 1, 8) for i in range(10)}
    params |= {f"width{i}": trial.suggest_float(f"width{i}", 0.25, 2.0) for i in range(8)}
    params["block"] = trial.suggest_categorical("block", ["basic", "bottleneck", "inverted"])
    params["activation"] = trial.suggest_categorical("activation", ["relu", "silu"])
    return params


def order(params: dict[str, Any]) -> tuple[tuple[str, str], list[float]]:
    return (params["block"], params["activation"]), [params[name] for name in SPACE if name[:5] in ("depth", "width")]


def evaluate(params: dict[str, Any]) -> tuple[float, float]:
    capacity = np.array(order(params)[1])
    return float(1.0 - np.exp(-capacity.mean())), float((capacity**2).sum())


SAMPLERS: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
    "random": lambda: optuna.samplers.RandomSampler(seed=0),
    "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=0),
    "tpe": lambda: optuna.samplers.TPESampler(seed=0),
    "gp": lambda: optuna.samplers.GPSampler(seed=0),
    "pop, no argument": lambda: PartialOrderPruningSampler(seed=0),
    "pop, space and order": lambda: PartialOrderPruningSampler(suggest, order, seed=0),
    "pop, cost known too": lambda: PartialOrderPruningSampler(
        suggest, order, {1: lambda params: evaluate(params)[1]}, seed=0
    ),
}


# Largest number of trials with which a sampler is measured: the time of a Gaussian process grows with the cube of it.
MOST_TRIALS = {"gp": 1000}


def ask_times(sampler: optuna.samplers.BaseSampler, n_trials: int, n_asks: int) -> list[float]:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=1))
    study.optimize(lambda trial: evaluate(suggest(trial)), n_trials=n_trials)
    study.sampler = sampler
    seconds = []
    for _ in range(n_asks + 1):
        started = time.perf_counter()
        trial = study.ask()
        params = suggest(trial)
        seconds.append(time.perf_counter() - started)
        study.tell(trial, evaluate(params))
    # The first proposal reads the whole study, which happens only once after a restart.
    return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", nargs="+", type=int, default=[1000, 10_000])
    parser.add_argument("--asks", type=int, default=30)
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"{'sampler':22} {'trials':>7} {'median ms':>10} {'largest ms':>11}")
    for n_trials in arguments.trials:
        for name in arguments.samplers:
            if n_trials > MOST_TRIALS.get(name, n_trials):
                print(f"{name:22} {n_trials:7}   not measured")
                continue
            milliseconds = 1e3 * np.array(ask_times(SAMPLERS[name](), n_trials, arguments.asks))
            print(f"{name:22} {n_trials:7} {np.median(milliseconds):10.1f} {milliseconds.max():11.1f}", flush=True)


if __name__ == "__main__":
    main()
