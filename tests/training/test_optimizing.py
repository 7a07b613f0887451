import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.optim import build_optim_wrapper

import smnas_optuna.detector.layers  # noqa: F401  # provides mmcv's operators
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.model_config import model_config
from smnas_optuna.parts.optimization import Optimization
from smnas_optuna.training.optimizing import optimizer_config, scaled_lr, schedule_config

SGD = Optimization(optimizer="SGD", lr=0.24, base_batch_size=64, momentum=0.9, weight_decay=0.1, warmup_iterations=500)
ADAMW = Optimization(optimizer="AdamW", lr=0.004, base_batch_size=256, weight_decay=0.05, warmup_iterations=1000)


def test_the_learning_rate_follows_the_batch_size() -> None:
    assert scaled_lr(SGD, 8) == pytest.approx(0.03)
    assert scaled_lr(ADAMW, 64) == pytest.approx(0.002)
    assert scaled_lr(SGD.model_copy(update={"base_batch_size": None}), 8) == 0.24


def test_the_learning_rate_rises_for_a_fifth_of_the_training_at_most() -> None:
    rise, cosine = schedule_config(SGD, 64, epochs=3, steps=10_000)
    assert (rise["end"], cosine["eta_min"], cosine["end"]) == (500, pytest.approx(0.0024), 3)
    assert schedule_config(SGD, 64, epochs=3, steps=100, parts=2)[0]["end"] == 40
    assert schedule_config(SGD, 64, epochs=3, steps=0)[0]["end"] == 500
    (only,) = schedule_config(SGD.model_copy(update={"warmup_iterations": 0, "final_lr": 0.0}), 64, epochs=3, steps=9)
    assert only["eta_min"] == 0.0


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    register_all_modules()
    text = "64x64 CSPNeXt(d=0.167,w=0.125) CSPNeXtPAFPN(P2-P4,c=16) RTMDet"
    built: torch.nn.Module = MODELS.build(model_config(Architecture.parse(text), classes=2, detector=Detector()))
    return built


def groups_of(model: torch.nn.Module, optimization: Optimization) -> list[dict[str, object]]:
    wrapper = {"type": "OptimWrapper", **optimizer_config(optimization, 64)}
    groups: list[dict[str, object]] = build_optim_wrapper(model, wrapper).optimizer.param_groups
    return groups


def test_adamw_decays_neither_biases_nor_norms_in_two_groups(model: torch.nn.Module) -> None:
    groups = groups_of(model, ADAMW)
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.05]  # type: ignore[type-var]
    for group in groups:
        parameters = group["params"]
        assert isinstance(parameters, list)
        assert {parameter.ndim > 1 for parameter in parameters} == {group["weight_decay"] != 0}
        assert group["lr"] == pytest.approx(0.002)
    # The head's levels share their convolutions, which must be updated once.
    updated = [id(parameter) for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
    assert sorted(updated) == sorted({id(parameter) for parameter in model.parameters()})


@pytest.mark.parametrize("optimization", [SGD, ADAMW])
def test_the_backbone_has_its_own_learning_rate(model: torch.nn.Module, optimization: Optimization) -> None:
    lr = scaled_lr(optimization, 64)
    groups = groups_of(model, optimization.model_copy(update={"backbone_lr": 0.1}))
    backbone = {id(parameter) for parameter in model.get_submodule("backbone").parameters()}
    for group in groups:
        inside = {id(parameter) in backbone for parameter in group["params"]}  # type: ignore[attr-defined]
        assert inside == {group["lr"] != lr}
        assert group["lr"] in (lr, pytest.approx(0.1 * lr))


def test_sgd_updates_all_weights_in_one_group(model: torch.nn.Module) -> None:
    (group,) = groups_of(model, SGD)
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.24, 0.9, 0.1)
