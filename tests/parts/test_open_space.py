"""The space of all shipped parts: every kind with every other one, and detectors of all of them at work."""

import itertools
from typing import Any

import optuna
import pytest
import torch

from smnas_optuna.detector.counting import build_on_meta
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.model_config import model_config
from smnas_optuna.search_space.structural import StructuralSpace
from tests.parts.detectors import NORMS, check_that_it_learns_and_detects

TIMM = (
    "timm:tf_efficientnet_lite0",
    "timm:convnext_atto",
    "timm:mobilenetv4_conv_small",
    "timm:hgnetv2_b0",
    "timm:regnety_002",
    "timm:swin_tiny_patch4_window7_224",
)
SPACE = StructuralSpace(
    backbones=("ResNet18", "MobileNetV2", "CSPNeXt-tiny", *TIMM),
    necks=("none", "FPN", "PAFPN", "CSPNeXtPAFPN", "CSPNeXtPAFPN(n=2)"),
    fpn_channels=32,
    heads=("RetinaNet", "FCOS", "ATSS", "GFL", "RTMDet", "2FC", "Cascade(n=2)"),
)


def built(architecture: Architecture) -> Any:
    return build_on_meta(model_config(architecture, classes=5, detector=Detector()))


def test_every_kind_of_neck_builds_with_every_rpn_and_head() -> None:
    pairs = [("", head) for head in SPACE.heads[:5]] + list(itertools.product(("RPN", "GA-RPN"), SPACE.heads[5:]))
    necks = {"none": "", "CSPNeXtPAFPN(n=2)": "CSPNeXtPAFPN(P2-P4,c=32,n=2)"}
    cases = itertools.product(SPACE.necks, pairs)
    backbones = itertools.cycle(("ResNet18(w=16)", "CSPNeXt-tiny", "timm:mobilenetv4_conv_small_050"))
    for (neck, (rpn, head)), backbone in zip(cases, backbones, strict=False):
        text = " ".join(filter(None, ("320x240", backbone, necks.get(neck, f"{neck}(P2-P4,c=32)"), rpn, head)))
        architecture = Architecture.parse(text)
        assert str(architecture) == text
        model = built(architecture)
        levels = model.extract_feat(torch.empty(1, 3, 256, 320, device="meta"))
        assert len(levels) == (3 if architecture.neck else 1)


def test_the_size_counts_every_kind() -> None:
    pairs = sum(1 for inputs in SPACE.fpn_inputs for level in SPACE.fpn_last_outputs if level >= inputs[-2:])
    necks = 1 + 2 * pairs + 2 * len(SPACE.fpn_inputs)
    assert SPACE.size == 9 * 4 * necks * (5 + 2 * 2)
    assert SPACE.backbone_levels == (1, 2, 3, 4)


@pytest.mark.parametrize("samples", [18, pytest.param(200, marks=pytest.mark.long)])
def test_samples_of_the_space_build(samples: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(samples):
        # In turn of every backbone and every head.
        study.enqueue_trial({"backbone": SPACE.backbones[number % 9], "head": SPACE.heads[number % 7]})
        architecture = SPACE.suggest(study.ask())
        assert Architecture.parse(str(architecture)) == architecture
        assert SPACE.suggest(optuna.trial.FixedTrial(SPACE.params(architecture))) == architecture
        built(architecture)


@pytest.mark.parametrize(
    ("text", "norm"),
    [
        ("CSPNeXt(d=0.167,w=0.25) CSPNeXtPAFPN(P2-P4,c=16) RTMDet", "BN"),
        ("CSPNeXt(d=0.167,w=0.25) RTMDet", "GN and WS"),
        ("ResNet18(w=16) PAFPN(P2-P6,c=16) ATSS", "GN"),
        ("timm:mobilenetv4_conv_small_050 FPN(P2-P5,c=16) ATSS", "BN and WS"),
        ("MobileNetV2(w=16) CSPNeXtPAFPN(P1-P3,c=16,n=2) FCOS", "GN and WS"),
        ("ResNet18(w=16) PAFPN(P2-P3:P2-P5,c=16) FCOS", "BN"),
        ("timm:convnext_atto FPN(P1-P4,c=16) GFL", "GN"),
        ("ResNet50-caffe(w=16) GFL", "BN"),
        ("timm:regnety_002 CSPNeXtPAFPN(P2-P4,c=16) RPN 2FC", "BN"),
        ("timm:resnet10t PAFPN(P2-P5,c=16) GA-RPN Cascade(n=2)", "GN and WS"),
    ],
)
def test_one_of_each_kind_learns_and_detects(text: str, norm: str) -> None:
    check_that_it_learns_and_detects(text, NORMS[norm])
