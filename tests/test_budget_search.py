"""A search with a budget: it ends in time, also when it was killed, and says when the budget is too small."""

import re
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from smnas_optuna.study.budget import seconds_spent
from smnas_optuna.study.storage import open_storage
from tests.commands import Started, run

NAME = "tiny/structural"


@pytest.mark.takes_minutes
def test_a_search_that_was_killed_does_not_get_its_budget_anew(tiny_recipe: Path, tmp_path: Path) -> None:
    arguments = ("run_study", tiny_recipe, "--budget", "30s", "--set", "structural.training.epochs=4")
    lasted = 0.0
    for moment in ("epoch 2/4", "mAP", "epoch 3/4"):
        started = time.monotonic()
        with Started(*arguments, folder=tmp_path) as search:
            if any(moment in line for line in search.stdout):
                search.kill()
        lasted += time.monotonic() - started
    started = time.monotonic()
    ended = run(*arguments, folder=tmp_path)
    lasted += time.monotonic() - started
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"\d+ trials done; \d+s of 30s spent\n", ended.stdout)
    spent = seconds_spent(open_storage(f"sqlite:///{tmp_path}/smnas.db", create=False), [NAME])
    # Of each killed run up to five seconds are not recorded; the last one writes its report after the end.
    assert spent <= lasted
    assert lasted <= 30 + 3 * 5 + 15
    study = optuna.load_study(study_name=NAME, storage=f"sqlite:///{tmp_path}/smnas.db")
    assert not [trial for trial in study.trials if trial.state == TrialState.RUNNING]
    assert [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    again = run(*arguments, folder=tmp_path)
    assert again.returncode == 0
    assert "epoch" not in again.stdout
    status = run("run_study", tiny_recipe, "--status", folder=tmp_path)
    assert re.search(r"tiny: searched for \d+s of its budget of 30s\n", status.stdout)


def test_a_budget_for_no_trial_is_refused_and_a_larger_one_trains_what_was_too_late(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    slow = ("--set", "structural.training.epochs=300")
    ended = run("run_study", tiny_recipe, "--budget", "12s", *slow, folder=tmp_path)
    assert ended.returncode == 2, ended.stdout
    assert re.fullmatch(r"error: --budget 12s: too small for a single trial; expected \d+m or more\n", ended.stderr), (
        ended.stderr
    )
    study = optuna.load_study(study_name=NAME, storage=f"sqlite:///{tmp_path}/smnas.db")
    late = [trial for trial in study.trials if trial.user_attrs["outcome"] == "too_late"]
    assert late
    assert re.fullmatch(
        r"would end too late: it needs about .+ more, and "
        r"(\d+s are left for the search|the time for the search is over)",
        late[0].user_attrs["reason"],
    )
    with Started("run_study", tiny_recipe, "--budget", "2h", *slow, folder=tmp_path) as search:
        for line in search.stdout:
            if "epoch 1/300" in line:
                search.kill()
                break
    running = [trial for trial in study.get_trials() if trial.state == TrialState.RUNNING]
    assert running[0].user_attrs["architecture"] == late[0].user_attrs["architecture"]


@pytest.mark.parametrize("budget", ["6", "0h", "soon"])
def test_what_is_no_budget_is_refused(tiny_recipe: Path, tmp_path: Path, budget: str) -> None:
    ended = run("run_study", tiny_recipe, "--budget", budget, folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == f"error: --budget: found {budget!r}, expected a duration such as 90m, 6h or 2d\n"
