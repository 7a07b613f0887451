import itertools
import math
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.reporting.hypervolume import hypervolume_text, measure_hypervolume
from smnas_optuna.reporting.study_results import results_of
from smnas_optuna.search.listed import Listed
from smnas_optuna.search.modular import Candidate, ModularSearch
from smnas_optuna.search.structural import StructuralSearch
from smnas_optuna.search.studies import open_study
from smnas_optuna.search.transfer import TransferSearch
from smnas_optuna.study.storage import open_storage
from tests.reporting.synthetic_study import finished, make_study, studies

SEEDS = ("64x48 ResNet18(w=8) FPN(P2-P4,c=16) RPN 2FC", "64x48 MobileNetV2(w=8) RPN 2FC")
OTHER = "64x48 ResNet18(w=8) FPN(P2-P3,c=16) RPN 2FC"


@pytest.fixture
def search(tiny_recipe: Path) -> StructuralSearch:
    return StructuralSearch(load_recipe(str(tiny_recipe), [f"structural.seeds={list(SEEDS)}"]))


@pytest.fixture
def study(search: StructuralSearch, tmp_path: Path) -> optuna.Study:
    return open_study(open_storage(f"sqlite:///{tmp_path}/tiny.db"), search)


@given(study=studies())
@settings(deadline=None, max_examples=60)
def test_without_starting_detectors_the_hypervolume_is_the_dominated_share_of_the_box(study: optuna.Study) -> None:
    measured = measure_hypervolume(results_of(study))
    if len(study.directions) == 1 or not study.trials:
        assert measured is None
        return
    signs = [-1 if direction is StudyDirection.MAXIMIZE else 1 for direction in study.directions]
    losses = [[sign * value for sign, value in zip(signs, trial.values, strict=True)] for trial in study.trials]
    cells = list(itertools.product(*(range(int(min(side)), int(max(side))) for side in zip(*losses, strict=True))))
    dominated = [
        cell
        for cell in cells
        if any(all(value <= corner for value, corner in zip(loss, cell, strict=True)) for loss in losses)
    ]
    assert measured is not None
    assert measured.values[-1] == pytest.approx(len(dominated) / max(1, len(cells)))
    assert measured.numbers == tuple(trial.number for trial in study.trials)
    assert list(measured.values) == sorted(measured.values)


@given(study=studies())
@settings(deadline=None, max_examples=60)
def test_the_hypervolume_history_equals_that_of_optuna(study: optuna.Study) -> None:
    measured = measure_hypervolume(results_of(study))
    if measured is None:
        return
    figure = optuna.visualization.plot_hypervolume_history(study, list(measured.reference))
    [course] = figure.data
    values = np.array([trial.values for trial in study.trials])
    whole = float(np.prod(np.ptp(values, axis=0))) or 1.0
    assert list(measured.numbers) == list(course.x)
    np.testing.assert_allclose(measured.values, np.array(course.y) / whole, rtol=1e-12, atol=1e-12)


def test_trials_that_violate_a_constraint_do_not_count() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"])
    study.add_trials([finished(0.0, 2.0), finished(2.0, 0.0)])
    trial = study.ask()
    trial.set_constraint("memory", 1.0)
    study.tell(trial, [0.0, 0.0])
    measured = measure_hypervolume(results_of(study))
    assert measured is not None
    assert measured.values == (0.0, 0.0, 0.0)


def test_the_text_of_a_share_says_of_what(tmp_path: Path) -> None:
    study = make_study(tmp_path, [finished(0.2, 10.0), finished(0.4, 30.0), finished(0.1, 50.0)])
    assert measure_hypervolume(results_of(study)).reference == (0.1, 50.0)  # type: ignore[union-attr]
    assert hypervolume_text(results_of(study)) == "67% of the range of values seen so far"


@pytest.mark.filterwarnings("ignore:The value nan is not acceptable")
def test_values_that_are_not_finite_do_not_count(tmp_path: Path) -> None:
    study = make_study(tmp_path, [finished(0.3, 20.0), finished(0.9, math.inf), finished(-math.inf, 1.0)])
    study.tell(study.ask(), [math.nan, 1.0])
    assert measure_hypervolume(results_of(study)).reference == (0.3, 20.0)  # type: ignore[union-attr]
    assert hypervolume_text(results_of(study)) == "0% of the range of values seen so far"


def test_the_hypervolume_is_relative_to_the_starting_detectors_once_all_have_ended(study: optuna.Study) -> None:
    study.add_trial(finished(0.3, 20.0, architecture=SEEDS[0]))
    assert hypervolume_text(results_of(study)) == "0% of the range of values seen so far"
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"architecture": SEEDS[1], "reason": "diverged"}))
    # From mAP 0 and 40 ms: 0.3 x 20.
    assert hypervolume_text(results_of(study)) == "1.00 times that of the starting detector"
    study.add_trial(finished(0.3, 10.0, architecture=OTHER))
    assert hypervolume_text(results_of(study)) == "1.50 times that of the starting detector"


def test_the_hypervolume_never_decreases_and_the_reference_point_does_not_change(study: optuna.Study) -> None:
    study.add_trials([finished(0.3, 20.0, architecture=SEEDS[0]), finished(0.1, 10.0, architecture=SEEDS[1])])
    texts = [hypervolume_text(results_of(study))]
    for values in ((0.01, 500.0), (0.2, 8.0), (0.5, 60.0), (0.0, 1.0), (0.4, 15.0)):
        study.add_trial(finished(*values, architecture=OTHER))
        texts.append(hypervolume_text(results_of(study)))
        measured = measure_hypervolume(results_of(study))
        assert measured is not None
        assert measured.reference == (0.0, 40.0)
        assert list(measured.values) == sorted(measured.values)
    # 0.3 x 20 + 0.1 x 10 = 7; with 0.2 at 8 ms it is 0.3 x 20 + 0.2 x 12; then 0.4 x 25 + 0.2 x 7.
    numbers = ["1.00", "1.00", "1.20", "1.20", "1.20", "1.63"]
    assert texts == [f"{number} times that of the 2 starting detectors" for number in numbers]


def test_starting_detectors_with_a_map_of_0_cannot_be_the_basis(study: optuna.Study) -> None:
    study.add_trials([finished(0.0, 20.0, architecture=seed) for seed in SEEDS])
    study.add_trial(finished(0.2, 10.0, architecture=OTHER))
    assert hypervolume_text(results_of(study)) == "100% of the range of values seen so far"


def test_a_starting_detector_that_is_retried_counts_once_it_has_ended(study: optuna.Study) -> None:
    study.add_trials([finished(0.3, 20.0, architecture=SEEDS[0]), finished(0.1, 10.0, architecture=SEEDS[1])])
    study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs={"architecture": SEEDS[1]}))
    assert hypervolume_text(results_of(study)).endswith("of the range of values seen so far")


def test_the_basis_is_the_candidates_backbone_or_the_baselines_of_a_transfer(
    search: StructuralSearch, tmp_path: Path
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/tiny.db")
    second = ModularSearch(search.recipe, Candidate(0, "tiny/structural", 0, Architecture.parse(SEEDS[0])))
    study = open_study(storage, second)
    study.add_trials([finished(0.3, 1e9, architecture=str(start)) for start in second.starts])
    study.add_trial(finished(0.6, 1e9, architecture="better"))
    assert hypervolume_text(results_of(study)).startswith("2.00 times that of the ")
    listed = [Listed(Architecture.parse(OTHER), "E0"), Listed(Architecture.parse(SEEDS[1]), "baseline")]
    transfer = open_study(storage, TransferSearch(search.recipe, tuple(listed)))
    transfer.add_trials([finished(0.3, 10.0, architecture=OTHER), finished(0.3, 20.0, architecture=SEEDS[1])])
    assert hypervolume_text(results_of(transfer)) == "1.50 times that of the baseline"


def test_there_is_no_hypervolume_for_times_of_several_devices_or_a_single_objective(tmp_path: Path) -> None:
    study = make_study(tmp_path, [finished(0.2, 10.0, device="A"), finished(0.4, 30.0, device="B")])
    assert measure_hypervolume(results_of(study)) is None
    single = make_study(tmp_path, [finished(0.1)], metrics=["map"], directions=["maximize"], name="single")
    assert hypervolume_text(results_of(single)) == ""
