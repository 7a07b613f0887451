"""A disk that is full, or gone, while a trial writes to it: not the architecture's fault, whatever it is that fails."""

import ctypes
import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch

from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.training.job import Failure, Job, Progress, Scores
from smnas_optuna.training.outcome import Outcome
from smnas_optuna.training.process import evaluate, failure_of, preload
from smnas_optuna.training.weights_file import write_weights

# Less than a trial's weights take, and more than its config and log.
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
    """A file system of its own, with little room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"smnas_optuna", bytes(folder), b"tmpfs", 0, b"size=%d" % TOO_SMALL):
        pytest.skip(f"a file system cannot be mounted here: {os.strerror(ctypes.get_errno())}")
    yield folder
    libc.umount2(bytes(folder), 2)  # also with files that are open still


@pytest.fixture
def short_files() -> Iterator[None]:
    """Let training processes write no long file: that needs no right to mount anything."""
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]  # no public way to ask
    _, most = resource.prlimit(server, resource.RLIMIT_FSIZE)
    resource.prlimit(server, resource.RLIMIT_FSIZE, (TOO_SMALL, most))
    yield
    resource.prlimit(server, resource.RLIMIT_FSIZE, (most, most))


def failure(job: Job) -> Failure:
    found = list(evaluate(job))[-1]
    assert isinstance(found, Failure)
    assert found.outcome is Outcome.INTERRUPTED
    return found


def fill(disk: Path) -> None:
    with open(disk / "filler", "wb", buffering=0) as filler:
        while filler.write(bytes(4096)) == 4096 and os.statvfs(disk).f_bavail:
            pass


@pytest.mark.usefixtures("disk")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_disk_without_room_for_the_weights(job: Job, processes: int) -> None:
    found = failure(job if processes == 1 else of_two_processes(job))
    assert found.reason == f"OSError: [Errno 28] No space left on device: '{job.folder}/weights.pth'"
    assert not list(job.folder.glob("weights.pth*"))


@pytest.mark.usefixtures("disk")
def test_a_disk_without_room_for_a_checkpoint(job: Job) -> None:
    assert "[Errno 28]" in failure(replace(job, training=job.training.model_copy(update={"epochs": 2}))).reason


def test_a_disk_that_takes_not_even_a_log(job: Job, disk: Path) -> None:
    job.folder.mkdir()
    fill(disk)
    assert "[Errno 28]" in failure(job).reason


def test_a_disk_that_takes_no_further_file(job: Job, disk: Path) -> None:
    ctypes.CDLL(None).mount(None, bytes(disk), None, 32, b"nr_inodes=1")  # MS_REMOUNT
    assert "[Errno 28]" in failure(job).reason


@pytest.mark.usefixtures("short_files")
def test_a_limit_that_the_weights_exceed(job: Job) -> None:
    found = failure(job)
    assert found.reason == f"OSError: [Errno 27] File too large: '{job.folder}/weights.pth'"
    assert not list(job.folder.glob("weights.pth*"))


def test_a_folder_that_is_gone_with_its_file_system(job: Job, tmp_path: Path) -> None:
    events = evaluate(replace(job, training=job.training.model_copy(update={"epochs": 10_000})))
    next(event for event in events if isinstance(event, Progress))
    job.folder.rename(tmp_path / "elsewhere")
    found = list(events)[-1]
    assert isinstance(found, Failure)
    assert found.outcome is Outcome.INTERRUPTED
    assert str(job.folder) in found.reason
    # It is not made anew where the file system was.
    assert not job.folder.exists()


def test_a_place_where_no_folder_can_be_made(job: Job, tmp_path: Path) -> None:
    (tmp_path / "disk").write_text("a file")
    assert str(job.folder) in failure(job).reason


def caused(cause: Exception, error: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_an_error_that_a_full_disk_has_caused_is_the_disks(tmp_path: Path) -> None:
    full = OSError(28, "No space left on device")
    behind = caused(caused(full, KeyError("writer")), RuntimeError("unexpected position"))
    for error in (full, behind):
        assert failure_of(error, tmp_path) == Failure(
            "OSError: [Errno 28] No space left on device", Outcome.INTERRUPTED
        )
    other = caused(FileNotFoundError(2, "No such file"), RuntimeError("shapes differ"))
    assert failure_of(other, tmp_path) == Failure("RuntimeError: shapes differ", Outcome.CRASHED)
    assert failure_of(OSError(12, "Cannot allocate memory"), tmp_path).outcome is Outcome.OUT_OF_MEMORY


def test_weights_replace_others_only_once_they_are_complete(disk: Path) -> None:
    file = disk / "weights.pth"
    write_weights({"state_dict": {"weight": torch.ones(9)}, "meta": {}}, file)
    with pytest.raises(OSError, match=r"No space left on device: '.*weights\.pth'"):
        write_weights({"state_dict": {"weight": torch.zeros(TOO_SMALL)}, "meta": {}}, file)
    assert torch.equal(torch.load(file, weights_only=True)["state_dict"]["weight"], torch.ones(9))
    assert [path.name for path in disk.iterdir()] == ["weights.pth"]


def test_a_trial_with_room_enough_succeeds(job: Job) -> None:
    assert isinstance(list(evaluate(job))[-1], Scores)
    assert (job.folder / "weights.pth").stat().st_size > TOO_SMALL
