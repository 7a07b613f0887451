"""Compare samplers on parts of both search spaces, with exact FLOPs as cost and a synthetic accuracy.

The costs of all architectures of a part are computed first, so the whole Pareto front is known: 1,560 detectors, whose
costs are counted (some minutes), and 66,144 backbones of one candidate, whose costs are computed by formula.

The accuracy is synthetic. For detectors it grows with the published ImageNet accuracy of the backbone, the resolution,
the levels of the pyramid and the stages of the head; for backbones with the capacity of each stage and the channels of
the FPN. Both have diminishing returns, and a random deviation of about 0.2 mAP for each architecture, so that some
pairs violate the partial order, as in real searches. With `--diverged 0.3`, training diverges for three in ten of the
largest tenth of the architectures: they get the lowest accuracy of all.

For each sampler the benchmark prints the mean normalised hypervolume after some numbers of evaluations, the median
number of evaluations until it reaches 90, 95 and 99 % of that of the whole part, and the time per proposal. `pop` uses
the partial order, `pop + cost` also the FLOPs before training, and `- order` means without the partial order; other
samplers can use neither. An architecture that is proposed again is not evaluated again and does not count.

    python benchmarks/sampler_race.py [--space structural modular] [--samplers random nsga2 tpe gp pop ...]
        [--seeds 5] [--budget 100] [--diverged 0.3]
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

from smnas_optuna.detector.counting import count_costs
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.searched import BackboneCode
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.heads.rcnn import RCNNHead
from smnas_optuna.parts.model_config import model_config
from smnas_optuna.samplers import PartialOrderPruningSampler
from smnas_optuna.samplers.partial_order_pruning.space import Space
from smnas_optuna.search.search import known_costs
from smnas_optuna.search_space.candidate import DOUBLINGS, BlockSpace, CandidateSpace
from smnas_optuna.search_space.modular import ModularSpace
from smnas_optuna.search_space.structural import StructuralSpace, order

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
    """A search space, with mAP in percent and giga-multiply-adds of all of its architectures.

    Args:
        suggest: Suggests an architecture in a trial.
        order: Partial order, see PartialOrderPruningSampler.
        table: Values of the objectives of each architecture.
    """

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


def largest_tenth(problem: Problem) -> list[Architecture]:
    """Return the tenth of all architectures with the largest mean capacity.

    Each capacity is scaled to its range among comparable architectures.
    """
    groups: dict[Any, list[Architecture]] = {}
    vectors = {}
    for architecture in problem.table:
        group, vectors[architecture] = problem.order(architecture)
        groups.setdefault(group, []).append(architecture)
    size: dict[Architecture, float] = {}
    for members in groups.values():
        capacities = np.array([vectors[each] for each in members], dtype=float)
        scaled = (capacities - capacities.min(axis=0)) / np.maximum(np.ptp(capacities, axis=0), 1e-300)
        size.update(zip(members, scaled.mean(axis=1), strict=True))
    large = np.quantile(list(size.values()), 0.9)
    return [architecture for architecture in problem.table if size[architecture] >= large]


def with_diverged(problem: Problem, large: Iterable[Architecture], share: float, seed: int) -> Problem:
    """Return the problem with the lowest accuracy for a random share of the large architectures."""
    worst = min(accuracy for accuracy, _ in problem.table.values())
    generator = random.Random(seed)
    diverged = {each: (worst, problem.table[each][1]) for each in large if generator.random() < share}
    return replace(problem, table=problem.table | diverged)


def _backbones() -> Iterable[Architecture]:
    """Yield all architectures of the modular part."""
    assert isinstance(MODULAR, CandidateSpace)
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
    # Capacity in early stages, where it costs most, improves the accuracy least.
    gain = sum(
        weight * math.log2(sum(planes) / 48) for weight, planes in zip((0.2, 0.4, 0.6, 0.4), code.planes, strict=True)
    )
    return _map(gain + 0.3 * math.log2(neck.channels / 128), architecture)


def _map(gain: float, architecture: Architecture) -> float:
    return 50.0 * (1.0 - math.exp(-0.25 * gain)) + random.Random(str(architecture)).gauss(0.0, 0.2)


def hypervolumes(table: Table, points: list[tuple[float, float]], counts: Iterable[int]) -> list[float]:
    """Return the areas that the first points dominate, for several counts of them, scaled to the table's ranges."""
    accuracy, cost = np.array(list(table.values())).T
    lowest, accuracies, dearest, costs = accuracy.min(), np.ptp(accuracy), cost.max(), np.ptp(cost)
    areas = []
    for n in counts:
        area = best = 0.0
        for gflops, reached in sorted((cost, accuracy) for accuracy, cost in points[:n]):
            height = (reached - lowest) / accuracies
            area += max(height - best, 0.0) * (dearest - gflops) / costs
            best = max(best, height)
        areas.append(float(area))
    return areas


def samplers_for(problem: Problem) -> dict[str, Callable[[int], BaseSampler]]:
    known = {1: lambda architecture: problem.table[architecture][1]}
    return {
        "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
        "nsga2": lambda seed: optuna.samplers.NSGAIISampler(population_size=20, seed=seed),
        "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True),
        "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
        "pop": lambda seed: PartialOrderPruningSampler(problem.suggest, problem.order, seed=seed),
        "pop - order": lambda seed: PartialOrderPruningSampler(problem.suggest, seed=seed),
        "pop + cost": lambda seed: PartialOrderPruningSampler(problem.suggest, problem.order, known, seed=seed),
        "pop + cost - order": lambda seed: PartialOrderPruningSampler(
            problem.suggest, known_objectives=known, seed=seed
        ),
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
    (whole,) = hypervolumes(table, list(table.values()), [len(table)])
    areas = hypervolumes(table, list(evaluated.values()), range(1, len(evaluated) + 1))
    return [area / whole for area in areas], seconds


def race(problem: Problem, names: list[str], seeds: int, budget: int, diverged: float) -> None:
    milestones = [n for n in (25, 50, 100, 200) if n <= budget]
    large = largest_tenth(problem) if diverged else []
    problems = [with_diverged(problem, large, diverged, seed) for seed in range(seeds)]
    print(f"{'sampler':18}" + "".join(f"  HV@{n:<5}" for n in milestones) + "  to 90%  to 95%  to 99%  ms/proposal")
    for name in names:
        rounds = [run(each, samplers_for(each)[name](seed), budget) for seed, each in enumerate(problems)]
        reached = [np.mean([curve[min(n, len(curve)) - 1] for curve, _ in rounds]) for n in milestones]
        needed = [
            np.median([next((i + 1 for i, area in enumerate(curve) if area >= share), np.inf) for curve, _ in rounds])
            for share in (0.9, 0.95, 0.99)
        ]
        print(
            f"{name:18}"
            + "".join(f"  {area:8.4f}" for area in reached)
            + "".join(f"  {n:6.0f}" for n in needed)
            + f"  {1e3 * float(np.median([seconds for _, seconds in rounds])):11.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--samplers", nargs="+", default=DEFAULT_SAMPLERS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=100)
    parser.add_argument("--diverged", type=float, default=0.0, metavar="SHARE")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for name in arguments.space:
        problem = PROBLEMS[name]()
        print(f"{name}: {len(problem.table):,} architectures; FLOPs exact, accuracy synthetic", flush=True)
        race(problem, arguments.samplers, arguments.seeds, arguments.budget, arguments.diverged)


DEFAULT_SAMPLERS = ["random", "nsga2", "tpe", "gp", "pop", "pop - order", "pop + cost", "pop + cost - order"]
PROBLEMS = {"structural": structural, "modular": modular}

if __name__ == "__main__":
    main()
