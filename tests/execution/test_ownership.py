"""A trial has one owner at a time, whatever happens to its owner, its signals and its database."""

import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from smnas_optuna.execution.local import supervise
from smnas_optuna.execution.loop import Run
from smnas_optuna.execution.worker import Finished, Message, Requeued, Send
from smnas_optuna.search.objective import TrialContext
from smnas_optuna.study.storage import open_storage
from smnas_optuna.training.server import preload
from tests.execution.cheap import CheapAssignment, check, create_cheap_study, suspend_in_training
from tests.servers import PostgreSQL

CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc")
_WORK = """
import sys
from smnas_optuna.execution.local import supervise
from tests.execution.cheap import CheapAssignment

def hear(message):
    print(type(message).__name__, message.trial if isinstance(message.trial, int) else message.trial.number, flush=True)

supervise([CheapAssignment(1, sys.argv[1], int(sys.argv[2]), 0.5, lease_seconds=0.5)], hear, print)
"""


# They mostly wait, while others keep all cores busy.
pytestmark = pytest.mark.takes_minutes


@pytest.fixture(scope="module", autouse=True)
def server_of_processes() -> None:
    preload()


def test_an_owner_of_another_container_that_was_suspended_for_too_long_goes_on_with_another_trial(
    postgresql: PostgreSQL,
) -> None:
    url = postgresql.create_database()
    if subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no namespaces of process numbers")
    create_cheap_study(url)
    storage = open_storage(url)
    command = [*CONTAINER, sys.executable, "-c", _WORK, url, "24"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as container:
        assert container.stdout is not None
        assert container.stdout.readline() == "Finished 0\n"
        suspended = psutil.Process(container.pid).children(recursive=True)
        suspend_in_training(url, "", suspended)
        taken: list[int] = []

        def hear(message: Message) -> None:
            if isinstance(message, Requeued):
                taken.append(message.trial)
                for process in suspended:
                    process.resume()

        supervise([CheapAssignment(0, url, 24, 0.3, lease_seconds=0.5)], hear, lambda line: None)
        told = container.stdout.read()
        assert container.wait() == 0
    assert len(taken) == 1
    assert re.match(rf"TakenOver {taken[0]}\nFinished \d+\n", told)
    storage.remove_session()
    study = check(url, 24)
    assert [trial.number for trial in study.trials if trial.state == TrialState.FAIL] == taken
    assert study.trials[taken[0]].user_attrs["outcome"] == "interrupted"


def test_a_worker_of_this_machine_keeps_its_trial_however_long_it_is_suspended(url: str) -> None:
    create_cheap_study(url)
    suspended: list[psutil.Process] = []
    ended: list[int] = []

    def hear(message: Message) -> None:
        assert isinstance(message, Finished)
        ended.append(message.trial.number)
        worker = message.trial.user_attrs["worker"]
        if not suspended:
            suspended.append(psutil.Process(int(worker.split(":")[1])))
            suspend_in_training(url, worker, suspended)
        elif len(ended) == 12:
            suspended[0].resume()

    assignments = [CheapAssignment(worker, url, 13, 0.4, lease_seconds=0.2) for worker in range(2)]
    supervise(assignments, hear, pytest.fail)
    assert len(ended) == 13
    study = check(url, 13)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_an_outage_that_is_longer_than_a_lease_ends_no_trial(postgresql: PostgreSQL) -> None:
    url = postgresql.create_database()
    create_cheap_study(url)
    outage: list[threading.Thread] = []

    def hear(message: Message) -> None:
        if not outage:
            outage.append(threading.Thread(target=postgresql.restart, args=(4.0,)))
            outage[0].start()

    assignments = [CheapAssignment(worker, url, 12, 2.0, lease_seconds=0.5) for worker in range(4)]
    supervise(assignments, hear, pytest.fail)
    outage[0].join()
    study = check(url, 12)
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.COMPLETE) == 12
    # Where the server went away between a trial's creation and its answer, Optuna has asked for another one.
    assert all(not trial.params for trial in study.trials if trial.state == TrialState.FAIL)


class SignallingSampler(optuna.samplers.RandomSampler):
    """Ends the worker while Optuna ends a trial."""

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@dataclass(frozen=True)
class SignalledAssignment:
    """Run one worker that is ended while Optuna ends its trial and, where ``before``, while it evaluates as well."""

    worker: int
    url: str
    before: bool

    def runs(self, send: Send) -> dict[str, Run]:
        storage = open_storage(self.url)
        study = optuna.load_study(study_name="cheap", storage=storage, sampler=SignallingSampler(seed=0))

        def objective(trial: optuna.Trial, context: TrialContext) -> tuple[float, float]:
            trial.set_user_attr("architecture", str(trial.suggest_int("depth", 1, 9)))
            context.release_claim()
            if self.before:
                os.kill(os.getpid(), signal.SIGTERM)
                context.check()
            return 0.5, 1.0

        return {"cheap": Run(study, storage, objective, total=3, size=9)}


@pytest.mark.parametrize("before", [True, False], ids=["twice", "once"])
def test_a_signal_while_optuna_ends_a_trial_leaves_none_running(url: str, before: bool) -> None:
    create_cheap_study(url)
    said: list[str] = []
    supervise([SignalledAssignment(0, url, before)], lambda message: None, said.append)
    assert said == []
    (trial,) = optuna.load_study(study_name="cheap", storage=url).trials
    assert trial.state == (TrialState.FAIL if before else TrialState.COMPLETE)
    assert trial.user_attrs["outcome"] == ("interrupted" if before else "completed")
