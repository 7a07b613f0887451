"""Kill -9 of a search at many moments: nothing finished is lost or done again, and the total is exact."""

import random
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from tests.commands import Started, run


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


def contains(text: str, line: str) -> bool:
    return text in line


def check_resume(folder: Path, recipe: Path, trials: int, kills: Iterable[Callable[[str], bool]]) -> None:
    """Kill a search again and again, each time it has resumed, and make sure that it ends as if it had not been."""
    arguments = ("run_study", recipe, "--n-trials", trials, "--set", "structural.training.epochs=3")
    for is_due in kills:
        before = completed(folder)
        with Started(*arguments, folder=folder) as search:
            if any(is_due(line) for line in search.stdout):
                search.kill()
        after = completed(folder)
        assert before.items() <= after.items()
    before = completed(folder)
    assert len(before) < trials, "the kills came too late to prove anything"

    ended = run(*arguments, folder=folder)
    assert ended.returncode == 0, ended.stderr
    after = completed(folder)
    assert before.items() <= after.items()
    assert len(after) == trials
    done = re.search(r"(\d+) of \d+ trials done", ended.stdout)
    assert done is not None
    assert int(done[1]) == len(before)
    study = optuna.load_study(study_name="tiny/structural", storage=f"sqlite:///{folder}/smnas.db")
    assert not [trial for trial in study.trials if trial.state == TrialState.RUNNING]


@pytest.mark.takes_minutes
def test_a_search_killed_at_any_stage_of_a_trial_ends_as_if_it_had_not_been(tiny_recipe: Path, tmp_path: Path) -> None:
    moments = ("is ready", "epoch 2/3", "mAP", "epoch 3/3")
    check_resume(tmp_path, tiny_recipe, 4, [partial(contains, moment) for moment in moments])


@pytest.mark.takes_minutes
@pytest.mark.long
def test_a_search_killed_after_random_lines_ends_as_if_it_had_not_been(tiny_recipe: Path, tmp_path: Path) -> None:
    choice = random.Random(0)
    check_resume(tmp_path, tiny_recipe, 16, [lambda line: choice.random() < 0.2] * 10)
