import math
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from optuna.trial import TrialState, create_trial

from smnas_optuna.reporting.study_results import results_of
from tests.reporting.synthetic_study import ARCHITECTURES, detectors, finished, make_study, studies


def test_a_row_has_the_values_the_parts_and_the_attributes(tmp_path: Path) -> None:
    frame = results_of(make_study(tmp_path, detectors())).frame
    assert list(frame["number"]) == list(range(7))
    assert list(frame["state"]) == ["complete"] * 5 + ["pruned", "fail"]
    assert list(frame["enqueued"]) == [True] + [False] * 6
    row = frame.loc[3]
    assert (row["map"], row["latency_ms"], row["flops"]) == (0.401, 52.0, 28_800_000_000)
    assert row["architecture"] == ARCHITECTURES[3]
    parts = row[["input_size", "backbone", "neck", "rpn", "head", "backbone_family"]]
    assert list(parts) == [*ARCHITECTURES[3].split(), "basicblock"]


def test_an_unfinished_trial_shows_what_was_measured_before_it_ended(tmp_path: Path) -> None:
    pruned = results_of(make_study(tmp_path, detectors())).frame.loc[5]
    assert pruned["latency_ms"] == 107.9
    assert np.isnan(pruned["map"])
    assert pruned["reason"] == "dominated before training by trial 3"


def test_all_columns_exist_without_trials_and_without_attributes(tmp_path: Path) -> None:
    study = make_study(tmp_path, metrics=None)
    named = {"number", "state", "objective 0", "objective 1", "architecture", "flops", "latency_spread_ms", "reason"}
    assert named <= set(results_of(study).frame.columns)
    assert results_of(study).front.empty
    study.add_trial(finished(1.0, 2.0, architecture="none of ours", flops="unknown"))
    row = results_of(study).frame.loc[0]
    assert row["objective 1"] == 2.0
    assert np.isnan(row["flops"])
    assert not isinstance(row["backbone"], str)


def test_an_attribute_does_not_replace_the_number_the_state_or_a_value(tmp_path: Path) -> None:
    study = make_study(tmp_path, [finished(0.3, 20.0, number=9, state="fail", map=0.9, on_front="no")])
    row = results_of(study).frame.loc[0]
    assert (row["number"], row["state"], row["map"], row["on_front"]) == (0, "complete", 0.3, True)


def test_the_front_is_sorted_from_the_cheapest_up(tmp_path: Path) -> None:
    assert list(results_of(make_study(tmp_path, detectors())).front["number"]) == [0, 2, 3]


def test_equal_trials_are_on_the_front_together(tmp_path: Path) -> None:
    points = ((0.3, 20.0), (0.3, 20.0), (0.3, 21.0), (0.2, 10.0))
    study = make_study(tmp_path, [finished(*point) for point in points])
    assert list(results_of(study).front["number"]) == [3, 0, 1]


@pytest.mark.filterwarnings("ignore:The value nan is not acceptable")
def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    study = make_study(tmp_path, [finished(0.3, 20.0), finished(0.9, math.inf), finished(-math.inf, 1.0)])
    study.tell(study.ask(), [math.nan, 1.0])
    study.add_trial(create_trial(state=TrialState.RUNNING))
    assert list(results_of(study).front["number"]) == [0]


@given(study=studies())
@settings(deadline=None, max_examples=60)
def test_the_front_equals_optunas(study: optuna.Study) -> None:
    assert set(results_of(study).front["number"]) == {trial.number for trial in study.best_trials}
