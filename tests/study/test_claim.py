import fcntl
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy

from smnas_optuna.study.claim import ClaimLock
from smnas_optuna.study.storage import open_storage
from tests.servers import PostgreSQL

_HOLD = """
import sys
from smnas_optuna.study import claim
from smnas_optuna.study.storage import open_storage
claim.LONGEST_TURN = float(sys.argv[2])
lock = claim.ClaimLock(open_storage(sys.argv[1]), "study")
lock.acquire()
print("held", flush=True)
sys.stdin.readline()
print(lock.release(), flush=True)
"""


def hold(url: str, longest_turn: float) -> "subprocess.Popen[str]":
    """Start a process that holds the lock until a line is written to it, and says whether it had held it till then."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, url, str(longest_turn)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_goes_with_its_process(url: str) -> None:
    storage = open_storage(url)
    process = hold(url, 60)
    process.kill()
    process.wait()
    with ClaimLock(storage, "study"):
        pass


def test_studies_have_locks_of_their_own(url: str) -> None:
    if url.startswith("sqlite"):
        pytest.skip("an SQLite file has one lock")
    process = hold(url, 60)
    with ClaimLock(open_storage(url), "another study"):
        pass
    process.communicate("\n")


def test_many_studies_of_a_stage_leave_the_pool_of_connections_alone(postgresql: PostgreSQL) -> None:
    storage = open_storage(postgresql.create_database())
    storage.engine.pool._timeout = 2  # type: ignore[attr-defined]  # seconds that it waits for a connection
    locks = [ClaimLock(storage, f"recipe/modular/C{number}") for number in range(20)]
    for _ in range(2):
        for lock in locks:
            lock.acquire()
            assert lock.release()
    assert storage.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_a_worker_that_is_suspended_in_its_turn_blocks_the_others_for_a_bounded_time(
    postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgresql.create_database()
    process = hold(url, 3)
    os.kill(process.pid, signal.SIGSTOP)
    monkeypatch.setattr("smnas_optuna.study.claim.LONGEST_TURN", 1.0)
    lock = ClaimLock(open_storage(url), "study")
    with caplog.at_level(logging.WARNING):
        lock.acquire()
    assert "study: has waited 1 s for another worker to start its trial" in caplog.text
    assert lock.release()
    os.kill(process.pid, signal.SIGCONT)
    told, _ = process.communicate("\n")
    assert told == "False\n"


def test_the_pool_gets_its_connection_back_as_it_was(postgresql: PostgreSQL) -> None:
    storage = open_storage(postgresql.create_database())
    settings = sqlalchemy.text("SELECT current_setting('lock_timeout'), current_setting('idle_session_timeout')")
    with storage.engine.connect() as connection:
        before = connection.execute(settings).one()
    with ClaimLock(storage, "study"):
        pass
    with storage.engine.connect() as connection:
        assert connection.execute(settings).one() == before


def test_who_waits_long_beside_a_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smnas_optuna.study.claim.LONGEST_TURN", 0.0)
    url = f"sqlite:///{tmp_path}/study.db"
    lock = ClaimLock(open_storage(url), "study")
    said: queue.Queue[str] = queue.Queue()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.put(record.getMessage())

    logger = logging.getLogger("smnas_optuna.study.claim")
    listener = Listener()
    logger.addHandler(listener)
    with open(tmp_path / "study.db.lock", "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiting = threading.Thread(target=lock.acquire)
        waiting.start()
        assert said.get(timeout=60).startswith("study: has waited 0 s")
    waiting.join()
    logger.removeHandler(listener)
    lock.release()
