"""The core that is kept for timing, seen by what threads and processes may run on."""

import os
import threading
from collections.abc import Iterator

import pytest

from smnas_optuna.timing import timing_turn
from smnas_optuna.timing.device_lock import DeviceLock
from smnas_optuna.timing.timing_turn import TimingTurn


@pytest.fixture(autouse=True)
def cores() -> Iterator[set[int]]:
    """Two cores of this machine; this thread has all of them again after the test."""
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("needs two cores")
    yield set(sorted(before)[:2])
    os.sched_setaffinity(0, before)


def turn(gpu: str, cores: set[int]) -> TimingTurn:
    return TimingTurn(DeviceLock(f"test-{os.getpid()}-{gpu}", "this test"), cores, "this test")


def test_timing_runs_on_a_core_that_training_leaves(cores: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing_turn, "_LEAST_CORES", 2)
    mine = turn("first", cores)
    mine.leave_core()
    # What it starts from now on leaves it as well.
    seen: list[set[int]] = []
    child = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
    child.start()
    child.join()
    assert seen == [os.sched_getaffinity(0)] == [{min(cores)}]
    with mine.taken():
        assert os.sched_getaffinity(0) == {max(cores)}
    assert os.sched_getaffinity(0) == {min(cores)}


def test_detectors_on_two_gpus_are_timed_one_after_the_other(cores: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing_turn, "_LEAST_CORES", 2)
    first, second = turn("first", cores), turn("second", cores)
    order: list[str] = []

    def time_second() -> None:
        with second.taken():
            order.append("second")

    other = threading.Thread(target=time_second)
    with first.taken():
        other.start()
        # It would be done by then.
        other.join(1)
        order.append("first")
    other.join()
    assert order == ["first", "second"]


def test_no_core_is_reserved_on_a_machine_with_few_cores(cores: set[int]) -> None:
    small = turn("first", cores)
    before = os.sched_getaffinity(0)
    small.leave_core()
    with small.taken():
        assert os.sched_getaffinity(0) == before
