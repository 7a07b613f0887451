import logging
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.backbone import ClassicBackbone
from smnas_optuna.reporting.correlation import correlate
from smnas_optuna.reporting.factors import factors_frame
from smnas_optuna.reporting.importance import module_effects, module_importances
from smnas_optuna.reporting.study_results import PARTS, results_of
from tests.reporting.synthetic_study import (
    finished,
    make_study,
    modular_study,
    precision_of_head,
    structural_study,
)
from tests.reporting.test_correlation import EXACT, at

CLASSIC = "800x600 ResNet50 FPN(P1-P5,c=256) RPN 2FC"


def precision_of_size_and_backbone(architecture: Architecture) -> float:
    assert isinstance(architecture.backbone, ClassicBackbone)
    return architecture.input_size.width / 1e4 + architecture.backbone.depth / 1e4


def test_the_only_module_with_an_effect_has_an_importance_of_1(tmp_path: Path) -> None:
    result = module_importances(results_of(structural_study(tmp_path, 80, precision_of_head)))
    assert list(result.shares.index) == list(PARTS)
    assert list(result.shares) == ["map", "latency_ms"]
    assert result.shares["map"].sum() == pytest.approx(1)
    # RetinaNet has no RPN, so the forest may split off that head by either module.
    assert result.shares.loc[["head", "rpn"], "map"].sum() > 0.98
    assert at(result.shares, "head", "map") > 0.6


def test_importances_are_in_proportion_to_the_variation_caused(tmp_path: Path) -> None:
    study = structural_study(tmp_path, 300, precision_of_size_and_backbone)
    trials = results_of(study).frame
    by_size = trials.groupby("input_size")["map"].transform("mean").var() / trials["map"].var()
    shares = module_importances(results_of(study)).shares["map"]
    assert shares["input_size"] == pytest.approx(by_size, abs=0.05)
    assert shares["backbone"] == pytest.approx(1 - by_size, abs=0.05)


def test_importances_are_reproducible_and_do_not_change_global_state(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("optuna"), "propagate", True)
    study = structural_study(tmp_path, 30, precision_of_head)
    caplog.set_level(logging.INFO, "optuna")
    optuna.create_study()
    assert caplog.messages, "Optuna's log is heard"
    caplog.clear()
    pd.testing.assert_frame_equal(
        module_importances(results_of(study)).shares, module_importances(results_of(study)).shares
    )
    assert caplog.messages == []
    assert optuna.logging.get_verbosity() == logging.INFO
    assert len(study.trials) == 30


def test_a_constant_objective_has_no_importances(tmp_path: Path) -> None:
    result = module_importances(results_of(structural_study(tmp_path, 20, precision_of_head)))
    assert result.shares["latency_ms"].isna().all()
    assert "inference time is the same in all trials, so no module has an effect on it." in result.remarks


def test_too_few_trials_have_no_importances(tmp_path: Path) -> None:
    result = module_importances(results_of(structural_study(tmp_path, 9, precision_of_head)))
    assert result.shares.isna().all(axis=None)
    assert result.remarks == ("The effect of modules needs 10 trials or more; found 9.",)


def test_modules_that_do_not_vary_or_vary_too_much_are_named(tmp_path: Path) -> None:
    result = module_importances(results_of(modular_study(tmp_path)))
    assert result.shares.isna().all(axis=None)
    assert result.remarks == (
        "The same in all trials, so without effect: input size, RPN, head.",
        "With 60 values in 60 trials the effect of the backbone cannot be estimated.",
        "A comparison needs two or more modules that vary; found: neck.",
    )


def test_a_study_without_architectures_has_remarks_only(tmp_path: Path) -> None:
    study = make_study(tmp_path, [finished(0.1 * number, 1.0, architecture="none of ours") for number in range(20)])
    assert module_importances(results_of(study)).remarks == ("The effect of modules needs 10 trials or more; found 0.",)
    assert module_effects(results_of(study)).empty
    assert correlate(factors_frame(results_of(study)), control="FLOPs").matrix.isna().all(axis=None)


def test_only_times_of_the_most_used_device_are_compared(tmp_path: Path) -> None:
    def device(number: int) -> str:
        return "A" if number % 3 else "B"

    study = structural_study(tmp_path, 30, precision_of_head, device)
    assert (
        "For inference time only the 20 of 30 trials on A are compared."
        in module_importances(results_of(study)).remarks
    )
    slow = [
        finished(0.5, 900.0, architecture=CLASSIC, device="B"),
        finished(0.5, 30.0, architecture=CLASSIC, device="A"),
    ]
    study.add_trials(slow)
    effects = module_effects(results_of(study))
    assert effects.loc[effects["value"] == "ResNet50", "latency_ms mean"].lt(31).all()
    assert effects.groupby("part")["trials"].sum().eq(32).all()


def test_effects_are_the_means_and_medians_of_each_value(tmp_path: Path) -> None:
    study = structural_study(tmp_path, 40, precision_of_size_and_backbone)
    effects = module_effects(results_of(study))
    trials = results_of(study).frame.fillna({"neck": "none", "rpn": "none"})
    assert list(effects.columns) == [
        *["part", "value", "trials"],
        *["map mean", "map median", "latency_ms mean", "latency_ms median"],
    ]
    assert list(dict.fromkeys(effects["part"])) == list(PARTS)
    for part, rows in effects.groupby("part"):
        expected = trials.groupby(str(part))["map"].agg(["size", "mean", "median"])
        found = rows.set_index("value")[["trials", "map mean", "map median"]].reindex(expected.index)
        np.testing.assert_allclose(found.to_numpy(dtype=float), expected.to_numpy(dtype=float), rtol=EXACT)
    sizes = effects.loc[effects["part"] == "input_size", "value"]
    assert list(sizes) == ["512x512", "800x600", "1080x720", "1333x800"]
