"""Workers that cannot renew their leases for long: suspended, as on a laptop that sleeps, or without their database."""

import re
import subprocess
import threading
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.trial import FrozenTrial, TrialState

from tests.commands import command
from tests.servers import PostgreSQL

SUSPENDED_SECONDS = 90.0
OUTAGE_SECONDS = 180.0


def resume(processes: list[psutil.Process]) -> None:
    for process in processes:
        process.resume()


def check(url: str, told: str, total: int) -> list[FrozenTrial]:
    """Make sure that no worker has died, no trial failed and nothing was trained twice, and return all trials."""
    assert "has died" not in told
    assert "taken over" not in told
    trials = optuna.load_study(study_name="tiny/structural", storage=url).trials
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len({trial.user_attrs["architecture"] for trial in complete}) == len(complete) == total
    # Where the server went away between a trial's creation and its answer, Optuna has asked for another one.
    assert {trial.state for trial in trials if trial.params} <= {TrialState.COMPLETE, TrialState.PRUNED}
    return trials


@pytest.mark.takes_minutes
@pytest.mark.long
def test_another_worker_goes_on_and_nothing_is_trained_twice(url: str, tiny_recipe: Path, tmp_path: Path) -> None:
    arguments = command(
        *("run_study", tiny_recipe, "--storage", url, "--n-trials", 8, "--workers", 2),
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
    trials = check(url, text, total=8)
    # It has been trained in one go, by the worker that began it.
    assert trials[number].state == TrialState.COMPLETE
    assert re.findall(rf"trial {number}: epoch (\d+)/8", text) == [str(epoch) for epoch in range(1, 9)]


@pytest.mark.takes_minutes
@pytest.mark.long
def test_an_outage_of_the_database_costs_four_workers_nothing(
    postgresql: PostgreSQL, tiny_recipe: Path, tmp_path: Path
) -> None:
    url = postgresql.create_database()
    arguments = command(
        *("run_study", tiny_recipe, "--storage", url, "--n-trials", 10, "--workers", 4),
        *("--set", "structural.training.epochs=20"),
    )
    told: list[str] = []
    outage: threading.Thread | None = None
    with subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            told.append(line)
            if "epoch 3/20" in line and outage is None:
                outage = threading.Thread(target=postgresql.restart, args=[OUTAGE_SECONDS])
                outage.start()
        assert process.wait() == 0
    assert outage is not None
    outage.join()
    check(url, "".join(told), total=10)
