"""Studies with trials of given values, for tests."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from hypothesis import strategies as st
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from smnas_optuna.detector.flops import backbone_costs
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.searched import BackboneCode
from smnas_optuna.search_space.modular import ModularSpace
from smnas_optuna.search_space.structural import StructuralSpace

ARCHITECTURES = (
    "512x512 MobileNetV2 GA-RPN 2FC",
    "512x512 ResNet18(w=16) FPN(P2-P3:P2-P5,c=64) RetinaNet",
    "800x600 ResNet50 FPN(P1-P5,c=256) RPN 2FC",
    "800x600 basicblock_56_12-11111-211-1112 FPN(P1-P5,c=128) RPN Cascade(n=3)",
    "1333x800 ResNeXt101 FPN(P2-P5,c=256) GA-RPN Cascade(n=3)",
)

CANDIDATE = "800x600 ResNet50 FPN(P1-P5,c=256) RPN Cascade(n=3)"


def make_study(
    directory: Path,
    trials: Sequence[FrozenTrial] = (),
    metrics: Sequence[str] | None = ("map", "latency_ms"),
    directions: Sequence[Literal["maximize", "minimize"]] = ("maximize", "minimize"),
    name: str = "coco/structural",
) -> optuna.Study:
    """Make a study in a SQLite file ``smnas.db`` in ``directory``."""
    storage = f"sqlite:///{directory / 'smnas.db'}"
    study = optuna.create_study(study_name=name, storage=storage, directions=list(directions))
    if metrics is not None:
        study.set_metric_names(list(metrics))
    study.add_trials(trials)
    return study


def finished(*values: float, seed: bool = False, **attributes: Any) -> FrozenTrial:
    """Make a finished trial with the objective ``values``."""
    system_attributes = {"fixed_params": {"depth": 50}} if seed else {}
    return create_trial(values=list(values), user_attrs=attributes, system_attrs=system_attributes)


def detectors() -> list[FrozenTrial]:
    """Make seven trials: 0 to 4 are finished, of which 1 and 4 are dominated, one is pruned, and one has failed."""
    measured = zip(ARCHITECTURES, (0.211, 0.204, 0.365, 0.401, 0.399), (18.25, 21.5, 40.5, 52.0, 108.1), strict=True)
    trials = [
        finished(
            precision,
            time,
            seed=number == 0,
            architecture=architecture,
            map=precision,
            map_50=precision * 1.5,
            map_75=precision * 1.1,
            map_small=-1.0,
            map_medium=precision * 1.1,
            map_large=precision * 1.3,
            flops=7_200_000_000 * (number + 1),
            params=25_600_000,
            latency_ms=time,
            latency_spread_ms=time / 50,
            train_seconds=60.0,
            device="NVIDIA V100-SXM2-16GB",
        )
        for number, (architecture, precision, time) in enumerate(measured)
    ]
    pruned = {"architecture": ARCHITECTURES[4], "latency_ms": 107.9, "reason": "dominated before training by trial 3"}
    failed = {"architecture": ARCHITECTURES[2], "reason": "training: loss became NaN in epoch 2"}
    return [
        *trials,
        create_trial(state=TrialState.PRUNED, user_attrs=pruned),
        create_trial(state=TrialState.FAIL, user_attrs=failed),
    ]


@st.composite
def studies(draw: st.DrawFn) -> optuna.Study:
    """Draw a study of one to three objectives in any directions, with ties and equal points."""
    either = st.sampled_from([StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE])
    directions = draw(st.lists(either, min_size=1, max_size=3))
    point = st.tuples(*[st.integers(0, 6)] * len(directions))
    study = optuna.create_study(directions=directions)
    study.add_trials([finished(*map(float, values)) for values in draw(st.lists(point, max_size=12))])
    return study


def sampled(space: Callable[[optuna.Trial], Architecture], count: int) -> list[Architecture]:
    """Draw architectures at random."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space(study.ask()) for _ in range(count)]


def modular_study(directory: Path, count: int = 60) -> optuna.Study:
    """Make a study of random codes, whose mAP increases with FLOPs and with early doublings of channels."""
    random = np.random.default_rng(0)
    trials = []
    for architecture in sampled(ModularSpace().for_candidate(Architecture.parse(CANDIDATE)).suggest, count):
        code = architecture.backbone
        assert isinstance(code, BackboneCode)
        blocks = "".join(code.stages)
        flops = backbone_costs(code, architecture.input_size).flops
        early = 1 - blocks.index("2") / len(blocks)
        precision = 0.1 + 0.05 * math.log(flops / 1e9) + 0.05 * early + 0.01 * random.normal()
        text = str(architecture)
        trials.append(finished(precision, float(flops), architecture=text, backbone_flops=flops, flops=2 * flops))
    return make_study(directory, trials, metrics=("map", "backbone_flops"), name="coco/modular/C3")


def structural_study(
    directory: Path,
    count: int,
    precision: Callable[[Architecture], float],
    device: Callable[[int], str] = lambda _: "A",
) -> optuna.Study:
    """Make a study of random detectors with a given mAP and an inference time of 20 ms."""
    architectures = sampled(StructuralSpace().suggest, count)
    return make_study(
        directory,
        [
            finished(precision(architecture), 20.0, architecture=str(architecture), device=device(number))
            for number, architecture in enumerate(architectures)
        ],
    )


def precision_of_head(architecture: Architecture) -> float:
    return {"RetinaNet": 0.2, "2FC": 0.25, "Cascade(n=2)": 0.3, "Cascade(n=3)": 0.34}.get(str(architecture.head), 0.36)
