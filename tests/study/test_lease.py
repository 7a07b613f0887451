import threading
from multiprocessing import connection
from pathlib import Path

import optuna
import pytest

from smnas_optuna.study.lease import Lease, LeaseLost
from smnas_optuna.study.patient_storage import PatientStorage
from smnas_optuna.study.process_identity import ProcessIdentity
from smnas_optuna.study.storage import open_storage
from tests.servers import PostgreSQL

LEASE_SECONDS = 0.2


def ask(storage: PatientStorage) -> optuna.Trial:
    return optuna.create_study(storage=storage, study_name="any", load_if_exists=True).ask()


def take_over(storage: PatientStorage, trial: optuna.Trial) -> None:
    """Take a trial over as another worker does; retries if the owner renews its lease at that moment."""
    while not storage.take_over(trial._trial_id, storage.last_renewal(trial._trial_id), {"outcome": "interrupted"}):
        pass


def is_readable(lease: Lease, timeout: float) -> bool:
    return bool(connection.wait([lease], timeout))  # type: ignore[list-item]  # it has a fileno


def test_the_owner_is_recorded_and_renews_its_lease(url: str) -> None:
    storage = open_storage(url, lease_seconds=LEASE_SECONDS)
    trial = ask(storage)
    with Lease(storage, trial) as lease:
        assert trial.user_attrs["worker"] == str(ProcessIdentity.current())
        first = storage.last_renewal(trial._trial_id)
        assert first is not None
        while storage.last_renewal(trial._trial_id).moment == first.moment:  # type: ignore[union-attr]
            lease.check()
        assert not is_readable(lease, timeout=0)


def test_an_owner_notices_that_its_trial_was_taken_over(url: str) -> None:
    storage = open_storage(url, lease_seconds=LEASE_SECONDS)
    trial = ask(storage)
    with Lease(storage, trial) as lease:
        take_over(open_storage(url), trial)
        assert is_readable(lease, timeout=60)
        with pytest.raises(LeaseLost, match="another worker has taken over trial 0"):
            lease.check()


def test_a_trial_that_was_taken_over_before_its_owner_is_recorded_is_not_evaluated(url: str) -> None:
    storage = open_storage(url, lease_seconds=LEASE_SECONDS)
    trial = ask(storage)
    take_over(storage, trial)
    threads = threading.active_count()
    with pytest.raises(LeaseLost), Lease(storage, trial):
        pytest.fail("its trial has ended")
    assert threading.active_count() == threads


def test_a_lease_outlasts_an_outage_of_the_database(postgresql: PostgreSQL) -> None:
    storage = open_storage(postgresql.create_database(), lease_seconds=LEASE_SECONDS)
    trial = ask(storage)
    with Lease(storage, trial) as lease:
        before = storage.last_renewal(trial._trial_id)
        assert before is not None
        postgresql.restart(2.0)
        while storage.last_renewal(trial._trial_id).moment <= before.moment:  # type: ignore[union-attr]
            lease.check()


def test_a_lease_leaves_no_threads_and_no_open_files(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db", lease_seconds=LEASE_SECONDS)
    files, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    for _ in range(20):
        with Lease(storage, ask(storage)):
            pass
    assert threading.active_count() == threads
    assert len(list(Path("/proc/self/fd").iterdir())) <= files + 2
