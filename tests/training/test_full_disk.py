"""A trial is interrupted, not failed, if its disk is full or was unmounted, whichever file cannot be written."""

import ctypes
import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.training.failure import failure_of
from smnas_optuna.training.job import Failure, Job, Progress, Scores
from smnas_optuna.training.outcome import Outcome
from smnas_optuna.training.process import evaluate
from smnas_optuna.training.server import preload
from smnas_optuna.training.weights_file import write_weights
from tests.commands import training_server

# Less than the size of a trial's weights, and more than that of its config and log.
TOO_SMALL = 300 * 2**10


@pytest.fixture(scope="module", autouse=True)
def _server() -> None:
    preload()


@pytest.fixture
def job(tiny_recipe: Path, tmp_path: Path) -> Job:
    recipe = load_recipe(str(tiny_recipe), [])
    stage, dataset = recipe.structural, open_dataset(recipe.dataset)
    architecture = Architecture.parse("64x48 ResNet18(w=8) RetinaNet")
    return Job(
        architecture, dataset, stage.detector, stage.training, recipe.device, tmp_path / "disk" / "trial", kind="cpu"
    )


def of_two_processes(job: Job) -> Job:
    return replace(job, device=job.device.model_copy(update={"gpus_per_trial": 2}))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"smnas_optuna", bytes(folder), b"tmpfs", 0, b"size=%d" % TOO_SMALL):
        pytest.skip(f"a file system cannot be mounted here: {os.strerror(ctypes.get_errno())}")
    yield folder
    libc.umount2(bytes(folder), 2)  # also with files that are open still


@pytest.fixture
def short_files() -> Iterator[None]:
    """Limit the size of files that training processes may write; unlike ``disk`` this needs no right to mount."""
    server = training_server().pid
    _, most = resource.prlimit(server, resource.RLIMIT_FSIZE)
    resource.prlimit(server, resource.RLIMIT_FSIZE, (TOO_SMALL, most))
    yield
    resource.prlimit(server, resource.RLIMIT_FSIZE, (most, most))


def failure(job: Job) -> Failure:
    result = list(evaluate(job))[-1]
    assert isinstance(result, Failure)
    assert result.outcome is Outcome.INTERRUPTED
    return result


def fill(disk: Path) -> None:
    with open(disk / "filler", "wb", buffering=0) as filler:
        while filler.write(bytes(4096)) == 4096 and os.statvfs(disk).f_bavail:
            pass


@pytest.mark.usefixtures("disk")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_while_saving_weights_interrupts_the_trial(job: Job, processes: int) -> None:
    result = failure(job if processes == 1 else of_two_processes(job))
    assert result.reason == f"OSError: [Errno 28] No space left on device: '{job.folder}/weights.pth'"
    assert not list(job.folder.glob("weights.pth*"))


@pytest.mark.usefixtures("disk")
def test_a_full_disk_while_saving_a_checkpoint_interrupts_the_trial(job: Job) -> None:
    assert "[Errno 28]" in failure(replace(job, training=job.training.model_copy(update={"epochs": 2}))).reason


def test_a_disk_too_full_for_a_log_interrupts_the_trial(job: Job, disk: Path) -> None:
    job.folder.mkdir()
    fill(disk)
    assert "[Errno 28]" in failure(job).reason


def test_a_disk_without_free_inodes_interrupts_the_trial(job: Job, disk: Path) -> None:
    ctypes.CDLL(None).mount(None, bytes(disk), None, 32, b"nr_inodes=1")  # MS_REMOUNT
    assert "[Errno 28]" in failure(job).reason


@pytest.mark.usefixtures("short_files")
def test_a_file_size_limit_that_the_weights_exceed_interrupts_the_trial(job: Job) -> None:
    result = failure(job)
    assert result.reason == f"OSError: [Errno 27] File too large: '{job.folder}/weights.pth'"
    assert not list(job.folder.glob("weights.pth*"))


def test_an_unmounted_folder_interrupts_the_trial(job: Job, tmp_path: Path) -> None:
    events = evaluate(replace(job, training=job.training.model_copy(update={"epochs": 10_000})))
    next(event for event in events if isinstance(event, Progress))
    job.folder.rename(tmp_path / "elsewhere")
    result = list(events)[-1]
    assert isinstance(result, Failure)
    assert result.outcome is Outcome.INTERRUPTED
    assert str(job.folder) in result.reason
    # The folder is not created again at the mount point.
    assert not job.folder.exists()


def test_a_folder_that_cannot_be_created_interrupts_the_trial(job: Job, tmp_path: Path) -> None:
    (tmp_path / "disk").write_text("a file")
    assert str(job.folder) in failure(job).reason


def caused(cause: Exception, error: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_an_error_caused_by_a_full_disk_has_the_outcome_interrupted(tmp_path: Path) -> None:
    full = OSError(28, "No space left on device")
    behind = caused(caused(full, KeyError("writer")), RuntimeError("unexpected position"))
    for error in (full, behind):
        assert failure_of(error, tmp_path) == Failure(
            "OSError: [Errno 28] No space left on device", Outcome.INTERRUPTED
        )
    other = caused(FileNotFoundError(2, "No such file"), RuntimeError("shapes differ"))
    assert failure_of(other, tmp_path) == Failure("RuntimeError: shapes differ", Outcome.CRASHED)
    assert failure_of(OSError(12, "Cannot allocate memory"), tmp_path).outcome is Outcome.OUT_OF_MEMORY


def test_existing_weights_are_replaced_only_by_a_complete_file(disk: Path) -> None:
    file = disk / "weights.pth"
    write_weights({"state_dict": {"weight": torch.ones(9)}, "meta": {}}, file)
    with pytest.raises(OSError, match=r"No space left on device: '.*weights\.pth'"):
        write_weights({"state_dict": {"weight": torch.zeros(TOO_SMALL)}, "meta": {}}, file)
    assert torch.equal(torch.load(file, weights_only=True)["state_dict"]["weight"], torch.ones(9))
    assert [path.name for path in disk.iterdir()] == ["weights.pth"]


def test_a_trial_with_enough_disk_space_succeeds(job: Job) -> None:
    assert isinstance(list(evaluate(job))[-1], Scores)
    assert (job.folder / "weights.pth").stat().st_size > TOO_SMALL
