"""Race samplers on parts of both search spaces, with exact FLOPs as cost and a synthetic accuracy.

Every architecture of a part is costed first, so the whole Pareto front is known: 1,560 detectors by counting (some
minutes), and 66,144 backbones of one candidate by formula. The accuracy is no measurement. For detectors it grows with
the published ImageNet accuracy of the backbone, the input's resolution, the levels of the pyramid and the stages of the
head; for backbones with the capacity of each stage and the channels of the FPN; both with diminishing returns and an
architecture's own deviation of about 0.2 mAP, so that the order is now and then violated as it is by real trainings.
Printed per sampler: mean normalised hypervolume after some evaluations, the median number of evaluations to 90, 95 and
99 % of that of the whole part, and the time per proposal. `pop` is told the order, `pop + cost` the FLOPs before
training too; the others can be told neither. A configuration proposed a second time is not evaluated again and costs
nothing.

    python benchmarks/sampler_race.py [--space structural modular] [--samplers random nsga2 tpe gp pop ...]
        [--seeds 5] [--budget 100]
"""

import argparse
import itertools
import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler

from smnas_optuna.architecture import Architecture, BackboneCode, RCNNHead
from smnas_optuna.detector.config import model_config
from smnas_optuna.detector.counting import count_costs
from smnas_optuna.samplers import PartialOrderPruningSampler
from smnas_optuna.samplers.partial_order_pruning.space import Space
from smnas_optuna.search import known_costs
from smnas_optuna.search_space.modular import DOUBLINGS, BlockSpace, ModularSpace
from smnas_optuna.search_space.structural import StructuralSpace, order
from smnas_optuna.settings import Detector

STRUCTURAL = StructuralSpace(
    backbones=("ResNet18", "ResNet34", "ResNet50", "ResNet101", "MobileNetV2"),
    fpn_inputs=("P1-P4", "P2-P4", "P3-P4"),
    fpn_last_outputs=("P4", "P5"),
    rpns=("none", "RPN"),
    heads=("RetinaNet", "2FC", "Cascade(n=2)", "Cascade(n=3)"),
)
MODULAR = ModularSpace(
    basicblock=BlockSpace(base_channels=(48, 56, 64, 72), blocks=("1-2", "1-3", "1-4", "1-4"))
).for_candidate(Architecture.parse("800x600 ResNet18 FPN(P1-P4,c=256) RPN 2FC"))
# Top-1 accuracy of torchvision's first published weights, in percent.
IMAGENET = {"ResNet18": 69.76, "ResNet34": 73.31, "ResNet50": 76.13, "ResNet101": 77.37, "MobileNetV2": 71.88}
Table = dict[Architecture, tuple[float, float]]


@dataclass(frozen=True)
class Problem:
    """A space and what all of its architectures are worth: (mAP in percent, giga-multiply-adds)."""

    suggest: Callable[[optuna.trial.BaseTrial], Architecture]
    order: Callable[[Architecture], Any]
    table: Table


def structural() -> Problem:
    table = {}
    for candidate in Space(STRUCTURAL.suggest, None).every():
        architecture = candidate.architecture
        flops, _ = count_costs(model_config(architecture, classes=80, detector=Detector()), architecture.input_size)
        table[architecture] = _structural_map(architecture), flops / 1e9
    return Problem(STRUCTURAL.suggest, order, table)


def modular() -> Problem:
    table = {each: (_modular_map(each), known_costs(each)["backbone_flops"] / 1e9) for each in _backbones()}
    assert len(table) == MODULAR.size
    return Problem(MODULAR.suggest, MODULAR.order, table)


def _backbones() -> Iterable[Architecture]:
    """Write down every architecture of the modular part."""
    candidate, blocks = MODULAR.candidate, MODULAR.blocks
    assert candidate.neck is not None
    for lengths in itertools.product(*(range(low, high + 1) for low, high in blocks.bounds)):
        for doublings in itertools.combinations(range(sum(lengths)), DOUBLINGS):
            digits = iter("2" if block in doublings else "1" for block in range(sum(lengths)))
            s2, s3, s4, s5 = ("".join(itertools.islice(digits, length)) for length in lengths)
            for base, channels in itertools.product(blocks.base_channels, MODULAR.fpn_channels):
                code = BackboneCode("basicblock", base, (s2, s3, s4, s5))
                yield replace(candidate, backbone=code, neck=replace(candidate.neck, channels=channels))


def _structural_map(architecture: Architecture) -> float:
    backbone: Any = architecture.backbone
    size, neck, head = architecture.input_size, architecture.neck, architecture.head
    gain = 0.12 * (IMAGENET[backbone.name] - 65.0) + 1.2 * math.log2(size.width * size.height / 2**17)
    gain += 0.5 if neck is None else 1.2 + 0.25 * (4 - neck.first) + 0.1 * neck.last_output
    gain += 0.5 * head.stages if isinstance(head, RCNNHead) else 0.3
    return _map(gain, architecture)


def _modular_map(architecture: Architecture) -> float:
    code, neck = architecture.backbone, architecture.neck
    assert isinstance(code, BackboneCode)
    assert neck is not None
    # Early stages gain least by what they have, which is dearest there.
    gain = sum(
        weight * math.log2(sum(planes) / 48) for weight, planes in zip((0.2, 0.4, 0.6, 0.4), code.planes, strict=True)
    )
    return _map(gain + 0.3 * math.log2(neck.channels / 128), architecture)


def _map(gain: float, architecture: Architecture) -> float:
    return 50.0 * (1.0 - math.exp(-0.25 * gain)) + random.Random(str(architecture)).gauss(0.0, 0.2)


def hypervolume(table: Table, points: list[tuple[float, float]]) -> float:
    accuracy, cost = np.array(list(table.values())).T
    area, best = 0.0, 0.0
    for gflops, reached in sorted((cost, accuracy) for accuracy, cost in points):
        height = (reached - accuracy.min()) / np.ptp(accuracy)
        area += max(height - best, 0.0) * (cost.max() - gflops) / np.ptp(cost)
        best = max(best, height)
    return float(area)


def samplers_for(problem: Problem) -> dict[str, Callable[[int], BaseSampler]]:
    known = {1: lambda architecture: problem.table[architecture][1]}
    return {
        "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
        "nsga2": lambda seed: optuna.samplers.NSGAIISampler(population_size=20, seed=seed),
        "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True),
        "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
        "pop": lambda seed: PartialOrderPruningSampler(problem.suggest, problem.order, seed=seed),
        "pop + cost": lambda seed: PartialOrderPruningSampler(problem.suggest, problem.order, known, seed=seed),
    }


def run(problem: Problem, sampler: BaseSampler, budget: int) -> tuple[list[float], float]:
    """Return the normalised hypervolume after each evaluation, and the seconds per proposal."""
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    table = problem.table
    evaluated: Table = {}

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        architecture = problem.suggest(trial)
        evaluated.setdefault(architecture, table[architecture])
        if len(evaluated) >= budget:
            study.stop()
        return table[architecture]

    started = time.perf_counter()
    study.optimize(objective, n_trials=20 * budget)
    seconds = (time.perf_counter() - started) / len(study.trials)
    values, whole = list(evaluated.values()), hypervolume(table, list(table.values()))
    return [hypervolume(table, values[:n]) / whole for n in range(1, len(values) + 1)], seconds


def race(problem: Problem, names: list[str], seeds: int, budget: int) -> None:
    milestones = [n for n in (25, 50, 100, 200) if n <= budget]
    print(f"{'sampler':12}" + "".join(f"  HV@{n:<5}" for n in milestones) + "  to 90%  to 95%  to 99%  ms/proposal")
    for name in names:
        make = samplers_for(problem)[name]
        rounds = [run(problem, make(seed), budget) for seed in range(seeds)]
        reached = [np.mean([curve[min(n, len(curve)) - 1] for curve, _ in rounds]) for n in milestones]
        needed = [
            np.median([next((i + 1 for i, area in enumerate(curve) if area >= share), np.inf) for curve, _ in rounds])
            for share in (0.9, 0.95, 0.99)
        ]
        print(
            f"{name:12}"
            + "".join(f"  {area:8.4f}" for area in reached)
            + "".join(f"  {n:6.0f}" for n in needed)
            + f"  {1e3 * float(np.median([seconds for _, seconds in rounds])):11.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--samplers", nargs="+", default=["random", "nsga2", "tpe", "gp", "pop", "pop + cost"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=100)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for name in arguments.space:
        problem = PROBLEMS[name]()
        print(f"{name}: {len(problem.table):,} architectures; FLOPs exact, accuracy synthetic", flush=True)
        race(problem, arguments.samplers, arguments.seeds, arguments.budget)


PROBLEMS = {"structural": structural, "modular": modular}

if __name__ == "__main__":
    main()
