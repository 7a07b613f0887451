"""A worker that is suspended with its training for longer than a lease, as on a laptop that sleeps."""

import re
import subprocess
import threading
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from tests.commands import command

SUSPENDED_SECONDS = 90.0
TRIALS = 8


def resume(processes: list[psutil.Process]) -> None:
    for process in processes:
        process.resume()


@pytest.mark.takes_minutes
def test_another_worker_goes_on_and_nothing_is_trained_twice(url: str, tiny_recipe: Path, tmp_path: Path) -> None:
    arguments = command(
        *("run_study", tiny_recipe, "--storage", url, "--n-trials", TRIALS, "--workers", 2),
        *("--set", "structural.training.epochs=8"),
    )
    told: list[str] = []
    timer: threading.Timer | None = None
    number = -1
    with subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            told.append(line)
            reached = re.match(r"trial (\d+): epoch 3/8", line)
            if reached and timer is None:
                number = int(reached[1])
                trial = optuna.load_study(study_name="tiny/structural", storage=url).trials[number]
                worker = psutil.Process(int(trial.user_attrs["worker"].split(":")[1]))
                suspended = [worker, *worker.children(recursive=True)]
                for each in suspended:
                    each.suspend()
                timer = threading.Timer(SUSPENDED_SECONDS, resume, [suspended])
                timer.start()
        assert process.wait() == 0
    assert timer is not None
    timer.join()
    text = "".join(told)
    assert "has died" not in text
    assert "taken over" not in text
    trials = optuna.load_study(study_name="tiny/structural", storage=url).trials
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len({trial.user_attrs["architecture"] for trial in complete}) == len(complete) == TRIALS
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    # It has been trained in one go, by the worker that began it.
    assert trials[number].state == TrialState.COMPLETE
    assert re.findall(rf"trial {number}: epoch (\d+)/8", text) == [str(epoch) for epoch in range(1, 9)]
