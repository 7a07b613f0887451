"""Detectors prepared for timing and export."""

import shutil

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope

from smnas_optuna.detector import layers  # noqa: F401  # registers our layers and provides mmcv's operators
from smnas_optuna.detector.deployment import prepare_for_deployment
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.model_config import model_config
from tests.detector.counted_calls import CountedCalls

SMALL = Detector(roi_samples=16, fc_channels=16, proposals=20, head_convs=1)


@pytest.mark.parametrize("head", ["RetinaNet", "RPN 2FC", "GA-RPN Cascade(n=2)"])
def test_standardised_weights_are_constants_and_give_the_same_features(head: str) -> None:
    torch.manual_seed(0)
    architecture = Architecture.parse(f"64x48 ResNet18(w=8) FPN(P2-P4,c=16) {head}")
    detector = SMALL.model_copy(update={"norm": "GN", "weight_standardization": True})
    config = model_config(architecture, classes=2, detector=detector)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(ConfigDict(config)).eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    folded = prepare_for_deployment(model)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        counts = []
        for each in (model, folded):
            with CountedCalls() as counted:
                features = each.extract_feat(image)
            counts.append((counted.calls.total(), features))
    (plain, expected), (fewer, found) = counts
    for level, same in zip(found, expected, strict=True):
        torch.testing.assert_close(level, same, atol=1e-4, rtol=1e-4)
    # The issue that led to this counted 60 to 110 % more operations with standardisation.
    assert plain > 1.6 * fewer
    assert not any("std" in call for call in counted.calls)
    # The copy alone has changed.
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_detectors_detect_the_same() -> None:
    torch.manual_seed(0)
    architecture = Architecture.parse("64x64 ResNet18(w=8) FPN(P2-P3,c=8) RetinaNet")
    config = model_config(architecture, classes=2, detector=SMALL)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(ConfigDict(config)).eval()
    plain, compiled = prepare_for_deployment(model), prepare_for_deployment(model, compiled=True)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected, found = (each.bbox_head(each.extract_feat(image)) for each in (plain, compiled))
        with torch.profiler.profile() as profiler:
            compiled.extract_feat(image)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # Activations have become parts of compiled kernels.
    assert not [
        event.key for event in profiler.key_averages() if "relu" in event.key and event.key.startswith("aten::")
    ]
