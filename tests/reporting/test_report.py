import subprocess
from pathlib import Path

import pytest

from tests.commands import run
from tests.reporting.synthetic_study import detectors, make_study


@pytest.fixture(autouse=True)
def no_storage_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMNAS_STORAGE", raising=False)


def run_report(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run("report", *arguments, folder=folder)


def assert_user_error(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    for part in parts:
        assert part in result.stderr


def test_the_report_is_written_and_its_path_printed(tmp_path: Path) -> None:
    make_study(tmp_path, detectors())
    result = run_report(tmp_path, "--study", "coco/structural")
    assert (result.returncode, result.stdout, result.stderr) == (0, "coco-structural.html\n", "")
    assert "coco/structural" in (tmp_path / "coco-structural.html").read_text(encoding="utf-8")


def test_the_storage_can_be_set_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMNAS_STORAGE", "sqlite:///elsewhere/smnas.db")
    (tmp_path / "elsewhere").mkdir()
    make_study(tmp_path / "elsewhere", detectors())
    result = run_report(tmp_path, "--study", "coco/structural", "--output", "reports")
    assert (result.returncode, result.stdout) == (0, "reports/coco-structural.html\n"), result.stderr


def test_the_message_about_an_unknown_study_lists_those_that_exist(tmp_path: Path) -> None:
    make_study(tmp_path, detectors())
    make_study(tmp_path, name="digits/structural")
    result = run_report(tmp_path, "--study", "coco/modular")
    assert_user_error(result, "coco/modular", "coco/structural", "digits/structural")


def test_an_absent_database_is_not_created(tmp_path: Path) -> None:
    assert_user_error(run_report(tmp_path, "--study", "coco/structural"), "smnas.db")
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_is_a_user_error(tmp_path: Path) -> None:
    storage = "postgresql+psycopg://reader:secret@127.0.0.1:1/smnas"
    result = run_report(tmp_path, "--study", "coco/structural", "--storage", storage)
    assert_user_error(result, "127.0.0.1")
    assert "secret" not in result.stderr


def test_an_output_that_is_a_file_is_a_user_error(tmp_path: Path) -> None:
    make_study(tmp_path, detectors())
    assert_user_error(run_report(tmp_path, "--study", "coco/structural", "--output", "smnas.db"), "cannot write")


def test_a_study_without_finished_trials_is_reported(tmp_path: Path) -> None:
    make_study(tmp_path)
    assert run_report(tmp_path, "--study", "coco/structural").returncode == 0
    assert "No trial of this study has finished yet" in (tmp_path / "coco-structural.html").read_text(encoding="utf-8")
