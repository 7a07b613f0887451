from pathlib import Path

import optuna
from optuna.trial import FrozenTrial
from plotly.graph_objects import Figure

from smnas_optuna.reporting.stages import stages_figure
from smnas_optuna.reporting.study_results import results_of
from tests.reporting.synthetic_study import ARCHITECTURES, detectors, finished, make_study


def figure_of(*studies: optuna.Study) -> Figure | None:
    return stages_figure([results_of(study) for study in studies])


def stage_two(directory: Path, number: int, trial: int, trials: list[FrozenTrial]) -> optuna.Study:
    study = make_study(directory, trials, metrics=("map", "backbone_flops"), name=f"coco/modular/C{number}")
    study.set_user_attr("candidate", {"study": "coco/structural", "trial": trial, "architecture": ARCHITECTURES[2]})
    return study


def test_both_stages_are_drawn_over_measured_time_with_each_candidate_as_a_star(tmp_path: Path) -> None:
    storage = make_study(tmp_path, detectors())._storage
    first = optuna.load_study(study_name="coco/structural", storage=storage)
    second = tmp_path / "second"
    second.mkdir()
    trials = [
        finished(0.40, 4e9, map=0.40, latency_ms=30.0, latency_spread_ms=1.0, architecture=ARCHITECTURES[3]),
        # Has fewer FLOPs, so it is on the front of its study; slower and less accurate, so it is off the front here.
        finished(0.30, 3e9, map=0.30, latency_ms=35.0, architecture=ARCHITECTURES[3]),
    ]
    figure = stages_figure(
        [
            results_of(study)
            for study in (
                first,
                stage_two(second, 0, 2, trials),
            )
        ]
    )
    assert figure is not None
    lines = {trace.name: trace for trace in figure.data if trace.mode == "lines"}
    assert list(lines["front of stage one"].x) == [18.25, 40.5, 52.0]
    assert list(lines["front of C0"].x) == [30.0]
    [star] = [trace for trace in figure.data if trace.name == "C0 as stage one found it"]
    assert (list(star.x), list(star.y)) == ([40.5], [0.365])
    assert star.marker.color == lines["front of C0"].line.color
    points = [trace for trace in figure.data if trace.legendgroup == "C0" and trace.hovertext and trace is not star]
    assert sorted(x for trace in points for x in trace.x) == [30.0, 35.0]


def test_one_stage_alone_makes_no_figure(tmp_path: Path) -> None:
    assert figure_of(make_study(tmp_path, detectors())) is None
    empty = tmp_path / "empty"
    empty.mkdir()
    assert (
        stages_figure(
            [
                results_of(study)
                for study in (
                    make_study(tmp_path, detectors(), name="other"),
                    stage_two(empty, 0, 2, []),
                )
            ]
        )
        is None
    )


def test_times_of_different_devices_have_a_front_each(tmp_path: Path) -> None:
    fast = [finished(0.2, 5.0, map=0.2, latency_ms=5.0, device="fast", architecture=ARCHITECTURES[0])]
    slow = [finished(0.1, 50.0, map=0.1, latency_ms=50.0, device="slow", architecture=ARCHITECTURES[2])]
    first = make_study(tmp_path, [*fast, *slow])
    second = tmp_path / "second"
    second.mkdir()
    trials = [finished(0.4, 4e9, map=0.4, latency_ms=6.0, device="fast", architecture=ARCHITECTURES[3])]
    figure = stages_figure(
        [
            results_of(study)
            for study in (
                first,
                stage_two(second, 0, 1, trials),
            )
        ]
    )
    assert figure is not None
    lines = [list(trace.x) for trace in figure.data if trace.name == "front of stage one"]
    assert lines == [[5.0], [50.0]]
