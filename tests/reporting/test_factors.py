from pathlib import Path

import pytest

from smnas_optuna.reporting.correlation import correlate
from smnas_optuna.reporting.factors import FACTORS, factors_frame
from smnas_optuna.reporting.study_results import results_of
from tests.reporting.synthetic_study import ARCHITECTURES, detectors, finished, make_study


def test_factors_follow_from_the_code(tmp_path: Path) -> None:
    text = "800x600 basicblock_56_12-11111-211-1112 FPN(P1-P5,c=128) RPN Cascade(n=3)"
    trial = finished(0.4, 23e9, architecture=text, flops=60_000_000_000)
    row = factors_frame(results_of(make_study(tmp_path, [trial], metrics=("map", "backbone_flops")))).loc[0]
    expected = [14, 56, 1 / 14, 7 / 14, 13 / 14, 2 / 14, 5 / 14, 3 / 14, 4 / 14, 23e9, 0.4]
    assert dict(row[list(FACTORS)]) == dict(zip(FACTORS, expected, strict=True))
    assert (row["number"], row["on_front"]) == (0, True)


@pytest.mark.parametrize("neck", ["FPN(P2-P3:P2-P5,c=64) ", ""])
def test_stages_that_the_detector_does_not_build_do_not_count(tmp_path: Path, neck: str) -> None:
    trial = finished(0.4, 20.0, architecture=f"512x512 basicblock_56_11-21-1-2 {neck}RPN 2FC", flops=7)
    row = factors_frame(results_of(make_study(tmp_path, [trial]))).loc[0]
    assert (row["depth"], row["DC_1"], row["FLOPs"]) == (5, 2 / 5, 7)
    assert row[["DC_2", "DC_3"]].isna().all()
    assert list(row[["len_2", "len_3", "len_4", "len_5"]]) == [2 / 5, 2 / 5, 1 / 5, 0]


def test_only_finished_trials_have_a_row_and_only_codes_have_factors(tmp_path: Path) -> None:
    frame = factors_frame(results_of(make_study(tmp_path, detectors())))
    assert list(frame["number"]) == [0, 1, 2, 3, 4]
    assert list(frame["on_front"]) == [True, False, True, True, False]
    assert list(frame[list(FACTORS)].notna().any(axis=1)) == ["block" in text for text in ARCHITECTURES]
    [first, second] = correlate(frame).remarks
    assert first == "Left out, since they have no backbone code: 4 of 5 trials."
    assert second == "A correlation needs 3 trials or more; found 1."
    assert correlate(frame, trials="front").remarks[0] == "Left out, since they have no backbone code: 2 of 3 trials."


def test_a_map_that_coco_did_not_measure_is_nan(tmp_path: Path) -> None:
    study = make_study(tmp_path, [finished(-1.0, 20.0, architecture=ARCHITECTURES[3])])
    assert factors_frame(results_of(study))["mAP"].isna().all()
