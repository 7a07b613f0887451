"""What an interrupted search has left in its output folder: it is resumed from, but not by another database's study."""

import shutil
import time
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState

from tests.commands import Started, run
from tests.conftest import TINY

_MANY_EPOCHS = ("--set", "structural.training.epochs=15")


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The folder of a search that was killed in its first trial, after an epoch."""
    folder = tmp_path_factory.mktemp("interrupted")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
    checkpoint = folder / "work_dirs/tiny/structural/trial_00000/checkpoint.pth"
    with Started("run_study", "tiny.yaml", *_MANY_EPOCHS, folder=folder) as search:
        deadline = time.monotonic() + 300
        while not checkpoint.exists():
            assert time.monotonic() < deadline
            assert search.is_running
            time.sleep(0.05)
        search.kill()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_same_search_resumes_in_a_folder_of_its_own(interrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    shutil.copytree(interrupted, folder)
    ended = run("run_study", "tiny.yaml", *_MANY_EPOCHS, "--n-trials", "1", folder=folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    dead, trial = trials_of(folder)
    assert (dead.state, trial.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert trial.user_attrs["resumed_after_epochs"] >= 1
    structural = folder / "work_dirs/tiny/structural"
    assert {path.name for path in structural.iterdir()} == {"trial_00000", "trial_00001"}
    assert (structural / "trial_00001" / "weights.pth").exists()
    assert not list(structural.rglob("checkpoint*"))


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(
            {"seeds": ["128x96 ResNet18(w=8) FPN(P2-P4,c=16) RPN 2FC"], "lr": 0.01}, id="input size and learning rate"
        ),
        pytest.param({"seeds": ["64x48 ResNet18(w=8) FPN(P2-P4,c=16) RPN Cascade(n=2)"], "lr": 0.02}, id="head"),
    ],
)
def test_a_checkpoint_of_another_database_is_moved_aside(
    interrupted: Path, tmp_path: Path, overrides: dict[str, object]
) -> None:
    folder = tmp_path / "search"
    shutil.copytree(interrupted, folder)
    (folder / "smnas.db").unlink()
    former = contents(folder / "work_dirs/tiny/structural/trial_00000")
    assert "checkpoint.pth" in former

    options = [
        *("--set", f"structural.seeds={overrides['seeds']}", "--set", f"structural.training.lr={overrides['lr']}"),
        *("--set", "structural.space.input_sizes=[64x48, 128x96]", "--n-trials", "1"),
    ]
    ended = run("run_study", "tiny.yaml", *options, folder=folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    trial = trials_of(folder)[0]
    assert trial.state == TrialState.COMPLETE, trial.user_attrs.get("reason")
    assert "resumed_after_epochs" not in trial.user_attrs
    assert contents(folder / "work_dirs/tiny/structural/trial_00000.former-1") == former


def trials_of(folder: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name="tiny/structural", storage=f"sqlite:///{folder}/smnas.db").trials
