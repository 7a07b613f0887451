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
    """Start a process that holds the lock until a line is written to it, and then prints what ``release`` returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, url, str(longest_turn)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_killed_process_does_not_keep_the_lock(url: str) -> None:
    storage = open_storage(url)
    process = hold(url, 60)
    process.kill()
    process.wait()
    with ClaimLock(storage, "study"):
        pass


def test_on_a_server_each_study_has_its_own_lock(url: str) -> None:
    if url.startswith("sqlite"):
        pytest.skip("an SQLite file has one lock")
    process = hold(url, 60)
    with ClaimLock(open_storage(url), "another study"):
        pass
    process.communicate("\n")


def test_locks_of_many_studies_do_not_exhaust_the_connection_pool(postgresql: PostgreSQL) -> None:
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
    released, _ = process.communicate("\n")
    assert released == "False\n"


def test_a_connection_returns_to_the_pool_with_its_former_settings(postgresql: PostgreSQL) -> None:
    storage = open_storage(postgresql.create_database())
    settings = sqlalchemy.text("SELECT current_setting('lock_timeout'), current_setting('idle_session_timeout')")
    with storage.engine.connect() as connection:
        before = connection.execute(settings).one()
    with ClaimLock(storage, "study"):
        pass
    with storage.engine.connect() as connection:
        assert connection.execute(settings).one() == before


def test_a_long_wait_for_the_lock_of_an_sqlite_file_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smnas_optuna.study.claim.LONGEST_TURN", 0.0)
    url = f"sqlite:///{tmp_path}/study.db"
    lock = ClaimLock(open_storage(url), "study")
    messages: queue.Queue[str] = queue.Queue()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.put(record.getMessage())

    logger = logging.getLogger("smnas_optuna.study.claim")
    listener = Listener()
    logger.addHandler(listener)
    with open(tmp_path / "study.db.lock", "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiting = threading.Thread(target=lock.acquire)
        waiting.start()
        assert messages.get(timeout=60).startswith("study: has waited 0 s")
    waiting.join()
    logger.removeHandler(listener)
    lock.release()
