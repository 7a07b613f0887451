"""Constraints: what costs too much is not trained, what violates one is on no front, and the nearest one is named."""

import re
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.recipe.settings import Constraints
from smnas_optuna.reporting.figures import front_figure
from smnas_optuna.reporting.study_results import results_of
from smnas_optuna.search.constraints import limits_text, nearest_violation
from tests.commands import run

NAME = "tiny/structural"


def study_in(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=NAME, storage=f"sqlite:///{folder}/smnas.db")


def trial(constraints: dict[str, float], state: TrialState = TrialState.COMPLETE, **attributes: object) -> FrozenTrial:
    system = {f"constraints:{name}": excess for name, excess in constraints.items()}
    values = [0.5] if state == TrialState.COMPLETE else None
    return optuna.trial.create_trial(
        state=state, values=values, user_attrs={"architecture": "a", **attributes}, system_attrs=system
    )


def test_excesses_are_shares_of_costs_and_missing_map() -> None:
    constraints = Constraints(max_latency_ms=20, max_params=1e6, min_map=0.4)
    assert constraints.excesses({"latency_ms": 30}) == {"max_latency_ms": 0.5}
    found = constraints.excesses({"latency_ms": 10, "params": 1e6, "map": 0.3, "flops": 1})
    assert found == {"max_latency_ms": -0.5, "max_params": 0, "min_map": pytest.approx(0.1)}
    assert limits_text(constraints) == "at most 20 ms and at most 1,000,000 parameters and at least mAP 0.400"
    assert Constraints().excesses({"map": 0.1}) == {}
    assert limits_text(Constraints()) == ""


def test_the_nearest_violation_is_the_smallest_of_the_largest_ones() -> None:
    far = trial({"max_latency_ms": 0.1, "min_map": 0.3}, latency_ms=22.0, map=0.1)
    near = trial({"max_latency_ms": 0.2}, TrialState.PRUNED, untrained_latency_ms=24.0)
    assert nearest_violation([far, near]) == "trial -1 is nearest to the constraints, with 24 ms: a"
    assert nearest_violation([far]) == "trial -1 is nearest to the constraints, with 22 ms and mAP 0.100: a"
    assert nearest_violation([far, near, trial({"max_latency_ms": -0.1})]) is None
    assert nearest_violation([trial({})]) is None
    assert nearest_violation([]) is None


def test_what_has_too_many_parameters_is_not_trained(tiny_recipe: Path, tmp_path: Path) -> None:
    ended = run("run_study", tiny_recipe, "--n-trials", 2, "--max-params", "60k", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    study = study_in(tmp_path)
    costly = [each for each in study.trials if each.user_attrs["outcome"] == "too_costly"]
    completed = [each for each in study.trials if each.state == TrialState.COMPLETE]
    assert costly
    assert len(completed) == 2
    for each in costly:
        assert each.state == TrialState.PRUNED
        assert each.constraints == {"max_params": pytest.approx(each.user_attrs["params"] / 6e4 - 1)}
        assert "untrained_latency_ms" not in each.user_attrs
        assert re.fullmatch(
            r"costs too much: params [\d.e+]+, where constraints allow at most 60,000 parameters",
            each.user_attrs["reason"],
        )
    assert all(each.constraints["max_params"] <= 0 for each in completed)
    other = run("run_study", tiny_recipe, "--n-trials", 3, "--max-params", "70k", folder=tmp_path)
    assert other.returncode == 2
    assert "made from a recipe that differs in constraints.max_params" in other.stderr


def test_a_time_that_no_detector_keeps_to_is_refused_with_the_nearest(tiny_recipe: Path, tmp_path: Path) -> None:
    space = "backbones=[ResNet18]", "necks=[FPN]", "fpn_last_outputs=[P4]", "heads=[RetinaNet, 2FC]"
    options = [part for key in space for part in ("--set", f"structural.space.{key}")]
    ended = run("run_study", tiny_recipe, "--max-latency", "0.01ms", *options, folder=tmp_path)
    assert ended.returncode == 2, ended.stdout
    found = re.fullmatch(
        r"error: constraints: no detector keeps to them; trial (\d+) is nearest to the constraints, with ([\d.]+) ms: "
        r"64x48 .+\n",
        ended.stderr,
    )
    assert found, ended.stderr
    trials = [each for each in study_in(tmp_path).trials if each.user_attrs["outcome"] != "duplicate"]
    assert {each.user_attrs["outcome"] for each in trials} == {"too_costly"}
    nearest = min(trials, key=lambda each: each.user_attrs["untrained_latency_ms"])
    assert int(found[1]) == nearest.number


def test_without_a_detector_of_the_smallest_map_the_front_is_empty_and_the_report_is_written(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    arguments = ("--n-trials", 2, "--min-map", 0.99, "--max-latency", "9s")
    ended = run("run_study", tiny_recipe, *arguments, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert re.search(
        r"no detector keeps to the constraints, at most 9e\+03 ms and at least mAP 0.990; trial \d is nearest",
        ended.stdout,
    )
    study = study_in(tmp_path)
    assert study.best_trials == []
    results = results_of(study)
    assert results.front.empty
    assert len(results.finished) == 2
    figure: Any = front_figure(results)
    assert [shape.y0 for shape in figure.layout.shapes if shape.y0 == shape.y1] == [0.99]
    assert [shape.x0 for shape in figure.layout.shapes if shape.x0 == shape.x1] == [9000]
    drawn = [trace.marker.symbol for trace in figure.data if isinstance(trace.marker.symbol, tuple)]
    symbols = {symbol for each in drawn for symbol in each}
    assert symbols == {"x"}
    assert "violates a constraint" in [trace.name for trace in figure.data]
    for command in (("report", "--study", NAME), ("run_study", tiny_recipe, "--status", "--min-map", 0.99)):
        shown = run(*command, folder=tmp_path)
        assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--max-latency", "15 min", "--max-latency: found '15 min', expected a time such as 15ms or 0.2s"),
        ("--max-latency", "0", "--max-latency: found '0', expected a time such as 15ms or 0.2s"),
        ("--max-params", "many", "--max-params: found 'many', expected a number such as 10M or 900k"),
        ("--min-map", "45", "constraints.min_map: found 45.0, expected less than 1"),
    ],
)
def test_what_is_no_limit_is_refused(tiny_recipe: Path, tmp_path: Path, option: str, value: str, message: str) -> None:
    ended = run("run_study", tiny_recipe, option, value, folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.endswith(f"{message}\n"), ended.stderr
