"""Final trainings as they go in real life: killed and gone on with, and on several processes."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.commands import command, run, torchrun

EPOCHS = 4


@pytest.fixture
def found(searched: Path) -> Path:
    """The folder of ``found.py``, a found detector's config, with few epochs."""
    arguments = ("--study", "tiny/structural", "--trial", 0, "--output", "found.py", "--schedule", "1x")
    exported = run("export", *arguments, folder=searched)
    assert exported.returncode == 0, exported.stderr
    config = searched / "found.py"
    config.write_text(config.read_text(encoding="utf-8").replace("max_epochs=12", f"max_epochs={EPOCHS}"))
    return searched


def test_a_training_that_is_killed_goes_on_after_its_last_epoch(found: Path) -> None:
    arguments = ("train", "found.py", "--output", "killed")
    with subprocess.Popen(command(*arguments), cwd=found, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("Epoch(val) [1]" in line for line in process.stdout)
        process.kill()
    ended = run(*arguments, "--resume", folder=found)
    assert ended.returncode == 0, ended.stderr
    first, *_, last = re.findall(r"Epoch\(train\) +\[(\d+)\]", ended.stdout)
    assert int(first) > 1
    assert last == str(EPOCHS)
    assert f"after {EPOCHS} epochs; checkpoints are in killed" in ended.stdout


def test_two_processes_of_torchs_launcher_train_with_the_rate_of_both_batches(found: Path) -> None:
    ended = torchrun(2, "train", "found.py", "--output", "two", folder=found)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(f"after {EPOCHS} epochs; checkpoints are in two") == 1
    # 8 images are one step of 4 in each of two processes.
    assert len(re.findall(rf"Epoch\(train\) +\[{EPOCHS}\]\[1/1\]", ended.stdout)) == 1
    assert "the current batch size is 8. Scaling the original LR by 0.25." in ended.stdout
    assert ended.stdout.count("loading annotations into memory") <= 4  # MMDetection's, of the first process alone
