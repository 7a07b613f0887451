"""Kill -9 of a search at random moments: nothing finished is lost or done again, and the total is exact."""

import random
import re
import subprocess
import time
from pathlib import Path

import optuna
import psutil
from optuna.trial import FrozenTrial, TrialState

from tests.commands import command, run

KILLS = 10
TRIALS = 8


def completed(folder: Path) -> dict[str, FrozenTrial]:
    """Return the completed trials by architecture; fails where one was evaluated twice."""
    database = folder / "smnas.db"
    if not database.exists() or "tiny/structural" not in optuna.get_all_study_names(f"sqlite:///{database}"):
        return {}
    study = optuna.load_study(study_name="tiny/structural", storage=f"sqlite:///{database}")
    trials = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    found = {trial.user_attrs["architecture"]: trial for trial in trials}
    assert len(found) == len(trials)
    return found


def test_a_search_killed_ten_times_ends_as_if_it_had_not_been(tiny_recipe: Path, tmp_path: Path) -> None:
    moments = random.Random(0)
    arguments = ("run_study", tiny_recipe, "--n-trials", TRIALS)
    for _ in range(KILLS):
        before = completed(tmp_path)
        with subprocess.Popen(command(*arguments), cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
            # From before torch is loaded to well within the second trial.
            time.sleep(moments.uniform(0.5, 11))
            started = psutil.Process(process.pid).children(recursive=True)
            process.kill()
        _, alive = psutil.wait_procs(started, timeout=20)
        assert not alive, "a training process outlived the run that started it"
        after = completed(tmp_path)
        assert before.items() <= after.items()
    before = completed(tmp_path)
    assert len(before) < TRIALS, "the kills came too late to prove anything"

    ended = run(*arguments, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    after = completed(tmp_path)
    assert before.items() <= after.items()
    assert len(after) == TRIALS
    done = re.search(r"(\d+) of \d+ trials done", ended.stdout)
    assert done is not None
    assert int(done[1]) == len(before)
    study = optuna.load_study(study_name="tiny/structural", storage=f"sqlite:///{tmp_path}/smnas.db")
    assert not [trial for trial in study.trials if trial.state == TrialState.RUNNING]
