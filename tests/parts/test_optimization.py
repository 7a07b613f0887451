import pytest
from pydantic import ValidationError

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.optimization import Optimization, combine, published_optimization
from smnas_optuna.recipe.settings import Training

RTMDET = "640x640 CSPNeXt-s CSPNeXtPAFPN(P2-P4,c=128) RTMDet"


def published(text: str) -> Optimization:
    return published_optimization(part.OPTIMIZATION for part in Architecture.parse(text).parts)


def training(**keys: object) -> Training:
    return Training.model_validate({"epochs": 2, "batch_size": 4, **keys})


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        # MMDetection's configs: faster-rcnn_r50_fpn_1x, atss_r50_fpn_1x, fcos_r50-caffe, rtmdet_s, mask-rcnn_swin-t.
        ("800x600 ResNet50 FPN(P1-P5,c=256) RPN 2FC", ("SGD", 0.02, 16, 0.0001, 500, None, False)),
        ("800x600 ResNet50 FPN(P1-P5,c=256) GA-RPN 2FC", ("SGD", 0.02, 16, 0.0001, 500, 35, False)),
        ("800x600 ResNet50 FPN(P2-P6,c=256) ATSS", ("SGD", 0.01, 16, 0.0001, 500, None, False)),
        ("800x600 ResNet50-caffe FPN(P2-P6,c=256) FCOS", ("SGD", 0.01, 16, 0.0001, 500, 35, False)),
        (RTMDET, ("AdamW", 0.004, 256, 0.05, 1000, None, True)),
        ("640x640 timm:convnext_tiny FPN(P1-P5,c=256) RPN 2FC", ("AdamW", 0.0001, 16, 0.05, 1000, None, False)),
        # A part that needs AdamW decides, wherever it is.
        ("640x640 timm:convnext_tiny FPN(P2-P6,c=256) FCOS", ("AdamW", 0.0001, 16, 0.05, 1000, None, False)),
        ("640x640 ResNet50 PAFPN(P2-P4,c=128) RTMDet", ("AdamW", 0.004, 256, 0.05, 1000, None, True)),
    ],
)
def test_each_detector_is_trained_as_its_parts_were_published(text: str, settings: tuple[object, ...]) -> None:
    found = published(text)
    names = ("optimizer", "lr", "base_batch_size", "weight_decay", "warmup_iterations", "clip_gradients")
    assert (*(getattr(found, name) for name in names), found.average_weights) == settings


def test_a_later_setting_replaces_an_earlier_one_and_brings_its_own_batch_size() -> None:
    first = Optimization(optimizer="SGD", lr=0.02, base_batch_size=16, weight_decay=0.1)
    combined = combine(first, Optimization(lr=0.5), Optimization(clip_gradients=10))
    assert combined == Optimization(optimizer="SGD", lr=0.5, weight_decay=0.1, clip_gradients=10)


def test_an_optimizer_without_a_learning_rate_is_refused() -> None:
    with pytest.raises(ValidationError, match="found AdamW without lr"):
        Optimization(optimizer="AdamW")


def test_without_a_learning_rate_each_architecture_is_trained_in_its_own_way() -> None:
    alike = training(warmup_iterations=7)
    assert alike.suited_to(Architecture.parse(RTMDET)).optimizer == "AdamW"
    faster = alike.suited_to(Architecture.parse("800x600 ResNet50 FPN(P1-P5,c=256) RPN 2FC"))
    assert (faster.optimizer, faster.lr, faster.warmup_iterations) == ("SGD", 0.02, 7)


def test_with_a_learning_rate_all_architectures_are_trained_alike() -> None:
    given = training(lr=0.04)
    # What recipes had before they could choose the optimizer.
    assert (given.optimizer, given.momentum, given.weight_decay, given.final_lr) == ("SGD", 0.9, 0.0001, 0.0001)
    assert (given.warmup_iterations, given.clip_gradients, given.average_weights) == (500, None, False)
    suited = given.suited_to(Architecture.parse(RTMDET))
    assert suited == given
    adaptive = training(lr=0.001, optimizer="AdamW")
    assert (adaptive.weight_decay, adaptive.momentum, adaptive.final_lr) == (0.05, None, None)


def test_a_recipe_can_change_the_settings_of_some_families() -> None:
    families = {"RTMDet": {"lr": 0.1, "average_weights": False}, "CSPNeXt-s": {"backbone_lr": 0.5}, "ATSS": {"lr": 9}}
    suited = training(families=families).suited_to(Architecture.parse(RTMDET))
    assert (suited.optimizer, suited.lr, suited.base_batch_size) == ("AdamW", 0.1, None)
    assert (suited.average_weights, suited.backbone_lr, suited.weight_decay) == (False, 0.5, 0.05)
    assert suited.families == {}
    alike = training(lr=0.3, families={"RTMDet": {"clip_gradients": 1}})
    assert alike.suited_to(Architecture.parse(RTMDET)).clip_gradients == 1
    assert alike.suited_to(Architecture.parse("64x48 ResNet18 FPN(P2-P4,c=16) ATSS")).clip_gradients is None
