"""Several workers on one study, through the command line, with real trainings."""

import os
import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.search.structural import StructuralSearch
from smnas_optuna.search.studies import open_study
from smnas_optuna.study.process_identity import ProcessIdentity
from smnas_optuna.study.storage import open_storage
from tests.commands import Started, run


def load(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="tiny/structural", storage=f"sqlite:///{folder}/smnas.db")


def dump(folder: Path) -> list[str]:
    """Return all that is in the database."""
    with closing(sqlite3.connect(folder / "smnas.db")) as connection:
        return list(connection.iterdump())


def test_the_trial_of_a_killed_worker_goes_on_from_its_checkpoint(tiny_recipe: Path, tmp_path: Path) -> None:
    epochs = ("--set", "structural.training.epochs=60")
    study, killed, printed = None, None, []
    arguments = ("run_study", tiny_recipe, "--n-trials", 2, "--workers", 2, *epochs)
    with Started(*arguments, folder=tmp_path) as search:
        for line in search.stdout:
            printed.append(line)
            if "epoch 1/60" in line:
                # Opened before it is needed, since the trial goes on meanwhile.
                study = study or load(tmp_path)
            reached = re.match(r"trial (\d+): epoch 3/60", line)
            if reached and study and killed is None:
                killed = study.trials[int(reached[1])]
                os.kill(int(killed.user_attrs["worker"].split(":")[1]), signal.SIGKILL)
        assert search.wait(60) == 0
    text = "".join(printed)
    assert killed is not None
    assert re.search(r"worker \d has died \(SIGKILL\); it is restarted in 1 s, restart 1 of 5", text)
    assert f"trial {killed.number} was interrupted and is back in the queue" in text
    resumed = re.search(r"trial (\d+): resumes after epoch (\d+), where it was interrupted", text)
    assert resumed is not None
    again, before = int(resumed[1]), int(resumed[2])
    assert before >= 3
    assert re.findall(rf"trial {again}: epoch (\d+)/60", text) == [str(epoch) for epoch in range(before + 1, 61)]

    trials = load(tmp_path).trials
    assert trials[again].user_attrs["architecture"] == killed.user_attrs["architecture"]
    assert trials[again].user_attrs["resumed_after_epochs"] == before
    complete = [trial.user_attrs["architecture"] for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(complete) == len(set(complete)) == 2
    assert not [trial for trial in trials if trial.state == TrialState.RUNNING]
    assert len({trial.user_attrs["worker"] for trial in trials}) >= 2


@pytest.mark.usefixtures("interruptible")
def test_two_signals_at_once_end_a_search_as_one_does(tiny_recipe: Path, tmp_path: Path) -> None:
    with Started("run_study", tiny_recipe, "--set", "structural.training.epochs=500", folder=tmp_path) as search:
        for line in search.stdout:
            if "epoch 2/500" in line:
                # As timeout does, which signals a command and then the group of both.
                search.send_signal(signal.SIGTERM)
                search.send_signal(signal.SIGINT)
        assert search.wait(60) == 130
    (trial,) = load(tmp_path).get_trials(states=[TrialState.RUNNING, TrialState.FAIL])
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["outcome"] == "interrupted"


def test_the_status_is_told_from_the_database_alone_and_nothing_is_written(tiny_recipe: Path, tmp_path: Path) -> None:
    absent = run("run_study", tiny_recipe, "--status", folder=tmp_path)
    assert absent.returncode == 2
    assert "no such database file" in absent.stderr
    storage = open_storage(f"sqlite:///{tmp_path}/smnas.db")
    none = run("run_study", tiny_recipe, "--status", folder=tmp_path)
    assert none.returncode == 2
    assert "study 'tiny/structural': not in the database" in none.stderr

    recipe = load_recipe(str(tiny_recipe))
    study = open_study(storage, StructuralSearch(recipe))
    trial = study.ask()
    trial.set_user_attr("architecture", str(recipe.structural.space.suggest(trial)))
    trial.set_user_attr("worker", str(ProcessIdentity.current()))
    storage.record_heartbeat(trial._trial_id)
    attributes = {"architecture": "64x48 ResNet18(w=8) RetinaNet", "map": 0.5, "map_50": 0.7, "latency_ms": 4.0}
    for _ in range(2):
        study.add_trial(optuna.trial.create_trial(values=[0.5, 4.0], user_attrs=attributes))
    storage.remove_session()
    before = dump(tmp_path)
    status = run("run_study", tiny_recipe, "--status", "--n-trials", 9, folder=tmp_path)
    assert status.returncode == 0, status.stderr
    assert "tiny/structural: 2 of 9 trials done" in status.stdout
    assert "trials: 2 complete, 1 running" in status.stdout
    assert re.search(rf"worker {os.getpid()} on \S+, last seen \d+ s ago: trial 0, 64x48 ResNet18", status.stdout)
    assert "Pareto front of tiny/structural" in status.stdout
    assert dump(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--workers", "0"], "--workers 0: expected a number from 1, or auto"),
        (["--workers", "many"], "--workers many: expected a number from 1, or auto"),
        (["--storage", "@absent"], "--storage @absent: cannot be read: No such file"),
        (["--launcher", "ray", "--ray-address", "127.0.0.1:1"], "--ray-address 127.0.0.1:1: "),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    tiny_recipe: Path, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    ended = run("run_study", tiny_recipe, *arguments, folder=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"error: {expected}")
    assert ended.stderr.count("\n") == 1


def test_a_password_shows_nowhere(tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql+psycopg://me:hush-hush@127.0.0.1:1/db\n", encoding="utf-8")
    ended = run("run_study", tiny_recipe, "--storage", "@url", folder=tmp_path)
    assert ended.returncode == 2
    assert "postgresql+psycopg://me:***@127.0.0.1:1/db: cannot be used" in ended.stderr
    assert "hush" not in ended.stdout + ended.stderr
