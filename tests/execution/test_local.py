import os
import signal
from pathlib import Path

import optuna
import psutil
import pytest

from smnas_optuna.execution.local import _enter, supervise
from smnas_optuna.execution.worker import Finished, Message
from smnas_optuna.study.storage import open_storage
from smnas_optuna.study.trial_outcome import counts_toward_total
from smnas_optuna.training.server import context, preload
from tests.execution.cheap import CheapAssignment, MistakenAssignment, check, create_cheap_study
from tests.execution.wrecker import Wrecker, living_children
from tests.servers import PostgreSQL


@pytest.fixture(scope="module", autouse=True)
def server_of_processes() -> None:
    preload()


def workers() -> list[psutil.Process]:
    """The processes of this test's workers: they lead their sessions, and their parent is the server of processes."""
    return living_children(
        lambda process: "forkserver" in " ".join(process.cmdline()) and os.getsid(process.pid) == process.pid
    )


def test_workers_share_a_study_and_reach_its_total_exactly(url: str) -> None:
    create_cheap_study(url)
    heard: list[Message] = []
    said: list[str] = []
    supervise([CheapAssignment(worker, url, 30, 0.05) for worker in range(4)], heard.append, said.append)
    assert said == []
    assert len(check(url, 30).trials) == 30
    finished = [message for message in heard if isinstance(message, Finished)]
    assert sorted(message.trial.number for message in finished) == list(range(30))
    assert len({message.worker for message in finished}) == 4
    # Once more there is nothing to do.
    supervise([CheapAssignment(0, url, 30, 0.05)], heard.append, said.append)
    assert len(check(url, 30).trials) == 30


@pytest.mark.parametrize(("trials", "away"), [(60, 2.0), pytest.param(300, 30.0, marks=pytest.mark.long)])
def test_a_search_survives_killed_workers_and_a_restarting_server(
    postgresql: PostgreSQL, trials: int, away: float
) -> None:
    url = postgresql.create_database()
    create_cheap_study(url)
    finished = 0
    said: list[str] = []

    def hear(message: Message) -> None:
        nonlocal finished
        finished += isinstance(message, Finished)

    with Wrecker(workers, lambda: finished, postgresql, away=[away, 0.5], kills_before_restart=3) as wrecker:
        supervise([CheapAssignment(worker, url, trials, 0.5) for worker in range(6)], hear, said.append)
    assert wrecker.restarts == 2
    assert wrecker.kills >= 6
    check(url, trials)
    assert any("has died (SIGKILL); it is restarted in 1 s, restart 1 of 5" in line for line in said)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_every_worker_and_loses_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cheap.db"
    create_cheap_study(url)

    def interrupt(_: Message) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        supervise([CheapAssignment(worker, url, 30, 0.2) for worker in range(3)], interrupt, lambda line: None)
    assert workers() == []
    study = optuna.load_study(study_name="cheap", storage=open_storage(url, create=False))
    assert 1 <= sum(map(counts_toward_total, study.trials)) < 30
    supervise([CheapAssignment(worker, url, 30, 0.0) for worker in range(3)], lambda message: None, lambda line: None)
    check(url, 30)


def test_a_worker_that_is_ended_while_it_says_its_last_ends_in_order() -> None:
    receiver, sender = context.Pipe(duplex=False)
    # More than a pipe holds: the worker waits in the middle of its message.
    process = context.Process(target=_enter, args=(MistakenAssignment(0, 2**22), sender))
    process.start()
    sender.close()
    assert receiver.poll(60)
    process.terminate()
    receiver.close()
    process.join()
    assert process.exitcode == 0
