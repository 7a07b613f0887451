from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from optuna.trial import FrozenTrial
from scipy import stats

from smnas_optuna.errors import UserError
from smnas_optuna.reporting.recommendation import Recommendation, recommendation_of
from smnas_optuna.reporting.study_results import results_of
from tests.commands import run
from tests.reporting.synthetic_study import ARCHITECTURES, detectors, finished, make_study, studies

NAMES = [f"64x48 ResNet18(w={width}) RPN 2FC" for width in range(8, 64, 4)]


def trial(accuracy: float, time: float, number: int = 0, **attributes: Any) -> FrozenTrial:
    measured = {"map": accuracy, "latency_ms": time, "device": "A", **attributes}
    return finished(accuracy, time, architecture=NAMES[number], **measured)


def recommend(folder: Path, *points: tuple[float, float], **repeats: list[float]) -> Recommendation:
    folder.mkdir(exist_ok=True)
    study = make_study(folder, [trial(*point, number) for number, point in enumerate(points)])
    return Recommendation(results_of(study), {NAMES[int(key[1:])]: values for key, values in repeats.items()}, {})


def test_the_picks_are_the_most_accurate_a_faster_one_that_is_as_good_and_the_knee(tmp_path: Path) -> None:
    # Trial 1 is dominated; trial 4 is more than a point below the best.
    found = recommend(tmp_path, (0.50, 100), (0.49, 120), (0.49, 60), (0.30, 5), (0.46, 20))
    assert found.picks == [0, 2, 4]
    assert found.recommended == 2
    best, close, knee, certainty, recommended = found.sentences
    assert best == f"Trial 0 is the most accurate: mAP 0.500 at 100 ms, {NAMES[0]}."
    assert close == (
        "Trial 2 is the fastest within one point of that accuracy, at 60% of the inference time of trial 0: "
        f"mAP 0.490 at 60.0 ms, {NAMES[2]}."
    )
    assert knee == (
        "Trial 4 is the knee of the front, from which on accuracy costs more, at 20% of the inference time of trial 0: "
        f"mAP 0.460 at 20.0 ms, {NAMES[4]}."
    )
    assert certainty.startswith("How certain this order is cannot be said: each was trained once")
    assert recommended == "Trial 2 is recommended: of these, the fastest within one point of the highest mAP."


def test_a_single_detector_is_everything(tmp_path: Path) -> None:
    found = recommend(tmp_path, (0.5, 10))
    assert found.picks == [0]
    assert found.sentences[1] == "It is also the fastest within one point of that accuracy."
    assert found.sentences[2].startswith("The front has no knee")


def test_a_front_without_a_bulge_has_no_knee(tmp_path: Path) -> None:
    assert recommend(tmp_path, (0.5, 50), (0.3, 30), (0.1, 10), (0.2, 25)).picks == [0]


def test_other_seeds_decide_which_of_the_picks_is_recommended(tmp_path: Path) -> None:
    slow = recommend(tmp_path, (0.500, 100), (0.495, 50), n0=[0.520, 0.510], n1=[0.485, 0.470])
    assert slow.recommended == 0
    # One that was trained less often may only have been lucky.
    assert recommend(tmp_path / "less", (0.500, 100), (0.495, 50), n0=[0.470]).recommended == 0
    found = recommend(tmp_path / "more", (0.500, 100), (0.495, 50), n0=[0.470, 0.480], n1=[0.505, 0.490])
    assert found.picks == [0, 1]
    assert found.recommended == 1
    # A pooled t-test of three trainings each.
    odds = 1 - stats.ttest_ind([0.495, 0.505, 0.490], [0.500, 0.470, 0.480]).pvalue / 2
    certainty = found.sentences[3]
    assert "trial 0 has a mean of 0.483 over 3 trainings (0.470 to 0.500)" in certainty
    assert f"trial 1 is more accurate than trial 0 with a probability of {odds:.0%}" in certainty


def test_equal_trainings_say_nothing_of_the_order(tmp_path: Path) -> None:
    # Of equally accurate detectors the fastest is the best one.
    assert recommend(tmp_path, (0.5, 100), (0.5, 50)).picks == [1]
    found = recommend(tmp_path / "more", (0.501, 100), (0.5, 50), n0=[0.5], n1=[0.501])
    assert found.picks == [0, 1]
    assert "with a probability of 50%" in found.sentences[3]


def test_only_times_of_one_device_are_compared(tmp_path: Path) -> None:
    study = make_study(
        tmp_path,
        [trial(0.5, 10, 0), trial(0.45, 5, 1), trial(0.9, 1, 2, device="B")],
    )
    assert recommendation_of(study).picks[0] == 0


def test_other_costs_and_directions_have_their_own_words(tmp_path: Path) -> None:
    trials = [finished(0.5, 10e9, architecture=NAMES[0]), finished(0.495, 8e9, architecture=NAMES[1])]
    sentences = recommendation_of(make_study(tmp_path, trials, metrics=("map", "flops"))).sentences
    assert sentences[0] == f"Trial 0 is the most accurate: mAP 0.500, FLOPs 10.0 G, {NAMES[0]}."
    assert sentences[1].startswith(
        "Trial 1 is the lowest in FLOPs within one point of that accuracy, at 80% of the FLOPs"
    )


@given(studies())
def test_every_study_with_a_trial_has_a_recommendation(study: optuna.Study) -> None:
    if not study.trials:
        with pytest.raises(UserError, match="no detector is trained yet"):
            recommendation_of(study)
        return
    found = recommendation_of(study)
    assert found.recommended in found.picks
    assert found.picks[0] in {each.number for each in study.trials}
    assert all(sentence.endswith(".") for sentence in found.sentences)


def test_the_command_says_it_while_the_search_runs(tmp_path: Path) -> None:
    make_study(tmp_path, detectors())
    ended = run("recommend", "coco/structural", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"Trial 3 is the most accurate: mAP 0.401 at 52.0 ms, {ARCHITECTURES[3]}.\n")
    absent = run("recommend", "coco/modular", folder=tmp_path)
    assert absent.returncode == 2
    assert absent.stderr == "error: --study 'coco/modular': no such study; the database has coco/structural\n"


def test_a_study_without_a_trained_detector_is_one_line(tmp_path: Path) -> None:
    make_study(tmp_path)
    ended = run("recommend", "coco/structural", folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == "error: study 'coco/structural': no detector is trained yet\n"
