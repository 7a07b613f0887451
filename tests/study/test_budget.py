"""The budget of a search: how durations are written, and that all running time counts once, across restarts."""

import time
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smnas_optuna.study import budget
from smnas_optuna.study.budget import (
    Deadline,
    RunningTime,
    duration_text,
    parse_duration,
    recorded_budget,
    seconds_spent,
)
from smnas_optuna.study.patient_storage import PatientStorage
from smnas_optuna.study.storage import open_storage


@pytest.fixture
def storage(tmp_path: Path) -> PatientStorage:
    storage = open_storage(f"sqlite:///{tmp_path}/smnas.db")
    for name in "ab":
        optuna.create_study(study_name=name, storage=storage)
    return storage


def ran(storage: PatientStorage, study: str, start: float, end: float) -> None:
    """Record that a command ran."""
    storage.set_study_system_attr(storage.get_study_id_from_name(study), f"smnas:session:{start}{end}", [start, end])


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400), ("6h", 21600), ("2d", 172800), ("1h30m", 5400), ("1.5h", 5400), ("45s", 45)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "6 h", "h", "-5m", "0m", "6h x", "six hours", "1e3s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"^found {text!r}, expected a duration such as 90m, 6h or 2d$"):
        parse_duration(text)


@given(st.integers(1, 10**7))
def test_a_duration_is_written_to_a_second_or_in_its_two_largest_units(seconds: int) -> None:
    read = parse_duration(duration_text(seconds).replace(" ", ""))
    assert read <= seconds < read + (1 if seconds < 3600 else 60 if seconds < 86400 else 3600)


def test_time_in_which_several_commands_ran_counts_once_and_pauses_do_not_count(storage: PatientStorage) -> None:
    assert seconds_spent(storage, ["a", "b", "absent"]) == 0
    ran(storage, "a", 100, 160)
    ran(storage, "b", 140, 180)
    ran(storage, "a", 150, 155)
    ran(storage, "a", 1000, 1010)
    assert seconds_spent(storage, ["a", "b", "absent"]) == 90
    assert seconds_spent(storage, ["b"]) == 40
    now = time.time()
    ran(storage, "a", now - 20, now - 2)
    assert seconds_spent(storage, ["a", "b"], since=now - 12) == pytest.approx(110, abs=1)


def test_a_command_records_when_it_runs_also_in_a_study_that_is_created_later(
    storage: PatientStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "_RECORD_SECONDS", 0.05)
    with RunningTime(storage, ["a", "later"], time.time() - 30, 60.0):
        while not seconds_spent(storage, ["a"]):
            time.sleep(0.01)
        optuna.create_study(study_name="later", storage=storage)
    assert seconds_spent(storage, ["a"]) == pytest.approx(30, abs=5)
    assert seconds_spent(storage, ["later"]) == pytest.approx(30, abs=5)
    assert seconds_spent(storage, ["b"]) == 0
    assert (recorded_budget(storage, ["a", "b"]), recorded_budget(storage, ["b"])) == (60, None)
    with RunningTime(storage, ["a"], time.time(), None):
        pass
    assert recorded_budget(storage, ["a"]) == 60


def test_stages_share_what_is_left_and_a_trial_may_end_a_little_later() -> None:
    first, last = Deadline.of_stage(1000, spent=200, stages=2), Deadline.of_stage(1000, spent=400)
    assert first.left == pytest.approx(400, abs=1)
    assert last.left == pytest.approx(600, abs=1)
    assert str(first).endswith(" of 16m 40s")
    assert parse_duration(str(first).partition(" of ")[0].replace(" ", "")) in (200, 201)
    assert not last.is_missed_by(620)
    assert last.is_missed_by(640)


def test_what_is_kept_for_the_end_is_taken_from_the_stages_before() -> None:
    deadline = Deadline.of_stage(1000.0, 100.0, stages=2, kept=0.3)
    assert deadline.left == pytest.approx((1000 - 300 - 100) / 2, abs=1)
    assert str(deadline) == "1m 40s of 16m 40s"
    last = Deadline.of_stage(1000.0, 100.0, kept=0.3)
    # With this budget the stage has as many seconds as are needed.
    assert last.budget_for(700.0) * 0.7 - 100 == pytest.approx(700, abs=1)
    assert last.budget_for(10.0) == 1000.0
