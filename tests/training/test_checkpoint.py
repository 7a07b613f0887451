"""Training resumes from the checkpoint of an interrupted trial only if it was trained with the same settings."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.detector.pretrained import Pretrained
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.training.checkpoint import adopt_checkpoint, delete_checkpoints, find_checkpoint, training_record
from smnas_optuna.training.job import Event, Job, Progress, Resumed, Scores, TrialIdentity, UntrainedLatency
from smnas_optuna.training.process import evaluate
from smnas_optuna.training.server import preload
from tests.conftest import TINY

# More than a training can end before it is interrupted.
EPOCHS = 16


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Job:
    """The first attempt at an architecture, interrupted after an epoch or more."""
    folder = tmp_path_factory.mktemp("interrupted")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
    recipe = load_recipe(str(folder / "tiny.yaml"), [f"structural.training.epochs={EPOCHS}"])
    stage = recipe.structural
    job = Job(
        Architecture.parse("64x48 ResNet18(w=8) FPN(P2-P4,c=16) RPN 2FC"),
        open_dataset(recipe.dataset),
        stage.detector,
        stage.training,
        recipe.device,
        folder / "trial_00003",
        kind="cpu",
        identity=TrialIdentity("a1", "tiny/structural", 3, 3),
    )
    preload()
    interrupt(job)
    return job


@pytest.fixture
def second(first: Job, tmp_path: Path) -> Job:
    """A retry of a copy of the first attempt."""
    former = tmp_path / "trial_00003"
    shutil.copytree(first.folder, former)
    return replace(
        first,
        folder=tmp_path / "trial_00005",
        identity=TrialIdentity("a1", "tiny/structural", 5, 3),
        former=(tmp_path / "trial_00004", former),
    )


def interrupt(job: Job) -> None:
    events = evaluate(job)
    next(event for event in events if isinstance(event, Progress))
    events.close()


def epochs_of(events: list[Event]) -> list[int]:
    return [event.epoch for event in events if isinstance(event, Progress)]


def log_of(job: Job) -> str:
    return (job.folder / "output.log").read_text(encoding="utf-8")


def test_an_interrupted_training_resumes_after_its_last_epoch(second: Job) -> None:
    former = second.former[1]
    _, _, _, resumed, *epochs, scores = evaluate(second)
    # The interrupted process may have trained more than one epoch before it was killed.
    assert isinstance(resumed, Resumed)
    assert 1 <= resumed.epochs < EPOCHS
    assert epochs_of(epochs) == list(range(resumed.epochs + 1, EPOCHS + 1))
    assert isinstance(scores, Scores)
    # The schedule resumes too: training ends at the lowest learning rate.
    rates = re.findall(r"lr: (\S+)", log_of(second))
    assert float(rates[-1]) < (second.training.lr or 0)
    assert not [*second.folder.glob("checkpoint*"), *former.glob("checkpoint*")]


def test_a_third_attempt_resumes_from_the_second(second: Job, tmp_path: Path) -> None:
    interrupt(second)
    done = find_checkpoint(second.folder)
    assert done is not None
    third = replace(
        second,
        folder=tmp_path / "trial_00006",
        identity=TrialIdentity("a1", "tiny/structural", 6, 3),
        former=(second.folder, *second.former),
    )
    _, _, _, resumed, *_, scores = evaluate(third)
    assert resumed == Resumed(done.epochs)
    assert isinstance(scores, Scores)
    assert not list(tmp_path.rglob("checkpoint*"))


def test_training_time_includes_the_time_before_the_interruption(second: Job) -> None:
    file = second.former[1] / "checkpoint.pth"
    content = torch.load(file, weights_only=True)
    assert content["meta"]["train_seconds"] > 0
    content["meta"]["train_seconds"] = 1e6
    torch.save(content, file)
    scores = list(evaluate(second))[-1]
    assert isinstance(scores, Scores)
    assert scores.train_seconds > 1e6


def test_training_does_not_resume_from_a_checkpoint_of_another_study(second: Job) -> None:
    other = replace(second, identity=TrialIdentity("b2", "tiny/structural", 5, 3))
    events = list(evaluate(other))
    assert isinstance(events[3], UntrainedLatency)
    assert epochs_of(events) == list(range(1, EPOCHS + 1))
    assert "trial_00003/checkpoint.pth: study: found a1, expected b2" in log_of(other)
    assert (second.former[1] / "checkpoint.pth").exists()


def test_a_damaged_checkpoint_does_not_fail_the_trial(second: Job) -> None:
    (second.former[1] / "checkpoint.pth").write_bytes(b"half a file")
    events = list(evaluate(second))
    assert isinstance(events[3], UntrainedLatency)
    assert isinstance(events[-1], Scores)
    assert "it cannot be loaded" in log_of(second)


def test_a_training_with_several_processes_resumes(first: Job, tmp_path: Path) -> None:
    device = first.device.model_copy(update={"gpus_per_trial": 2})
    training = first.training.model_copy(update={"epochs": 8})
    interrupted = replace(first, device=device, training=training, folder=tmp_path / "trial_00003")
    interrupt(interrupted)
    again = replace(interrupted, folder=tmp_path / "trial_00004", former=(interrupted.folder,))
    events = list(evaluate(again))
    assert isinstance(events[3], Resumed)
    assert isinstance(events[-1], Scores)


def _with_training(job: Job, **changes: object) -> Job:
    return replace(job, training=job.training.model_copy(update=changes))


def _with_other_boxes(job: Job) -> Job:
    """Replace the annotations by others."""
    split = job.dataset.train
    spoiled = job.folder.parent / split.annotations.name
    spoiled.write_bytes(split.annotations.read_bytes() + b"\n")
    return replace(job, dataset=replace(job.dataset, train=replace(split, annotations=spoiled)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda job: replace(job, identity=replace(job.identity, study="b2")), "study: found a1, expected b2"),
        (lambda job: replace(job, identity=replace(job.identity, first_trial=4)), "first_trial: found 3, expected 4"),
        (
            lambda job: replace(job, architecture=Architecture.parse("128x96 ResNet18(w=8) FPN(P2-P4,c=16) RPN 2FC")),
            "expected 128x96 ResNet18(w=8) FPN(P2-P4,c=16) RPN 2FC",
        ),
        (
            lambda job: replace(job, weights=Pretrained("resnet18.pth", "file resnet18.pth")),
            "weights: found None, expected file resnet18.pth",
        ),
        (lambda job: _with_training(job, lr=0.01), "training.lr: found 0.02, expected 0.01"),
        (lambda job: _with_training(job, epochs=9), "training.epochs: found 16, expected 9"),
        (lambda job: _with_training(job, seed=1), "training.seed: found 0, expected 1"),
        (
            lambda job: replace(job, detector=job.detector.model_copy(update={"anchor_scale": 8})),
            "detector.anchor_scale: found 4.0, expected 8",
        ),
        (
            lambda job: replace(job, dataset=replace(job.dataset, classes=("1", "0"))),
            "dataset.classes: found ['0', '1'], expected ['1', '0']",
        ),
        (_with_other_boxes, "dataset.annotations: found "),
        (
            lambda job: replace(job, device=job.device.model_copy(update={"gpus_per_trial": 2})),
            "device.gpus_per_trial: found 1, expected 2",
        ),
    ],
)
def test_training_with_other_settings_does_not_resume_and_logs_the_difference(
    second: Job, change: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(change)
    job: Job = change(second)
    job.folder.mkdir()
    assert adopt_checkpoint(job, training_record(job, 1)) is None
    assert message in capsys.readouterr().out
    assert not list(job.folder.iterdir())
    delete_checkpoints(job, training_record(job, 1))
    assert (second.former[1] / "checkpoint.pth").exists()


@pytest.mark.parametrize(("kind", "parts"), [("cuda", 1), ("cpu", 2)])
def test_training_on_another_kind_of_device_or_in_other_parts_does_not_resume(
    second: Job, kind: str, parts: int
) -> None:
    second.folder.mkdir()
    assert adopt_checkpoint(second, training_record(replace(second, kind=kind), parts)) is None


def test_training_resumes_with_another_number_of_loaders_or_time_limit(second: Job) -> None:
    job = _with_training(second, loader_workers=3, time_limit_minutes=7.0)
    job.folder.mkdir()
    assert adopt_checkpoint(job, training_record(job, 1)) is not None


def test_a_checkpoint_without_a_record_is_not_used(second: Job, capsys: pytest.CaptureFixture[str]) -> None:
    file = second.former[1] / "checkpoint.pth"
    content = torch.load(file, weights_only=True)
    del content["meta"]["record"]  # as an earlier version saved it
    torch.save(content, file)
    second.folder.mkdir()
    assert adopt_checkpoint(second, training_record(second, 1)) is None
    assert "it does not say which training it belongs to" in capsys.readouterr().out


def test_training_resumes_from_the_newest_checkpoint(second: Job) -> None:
    former = second.former[1]
    content = torch.load(former / "checkpoint.pth", weights_only=True)
    content["meta"]["epoch"] = EPOCHS - 1
    second.former[0].mkdir()
    torch.save(content, second.former[0] / "checkpoint.pth")
    second.folder.mkdir()
    taken = adopt_checkpoint(second, training_record(second, 1))
    assert taken is not None
    assert taken.epochs == EPOCHS - 1


@pytest.fixture
def other_file_system(tmp_path: Path) -> Iterator[Path]:
    """A folder to which no file of ``tmp_path`` can be linked."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def test_a_checkpoint_on_another_file_system_is_copied(second: Job, other_file_system: Path) -> None:
    job = replace(second, folder=other_file_system)
    assert adopt_checkpoint(job, training_record(job, 1)) == find_checkpoint(other_file_system)


def test_a_former_owner_that_is_alive_cannot_change_the_adopted_checkpoint(second: Job) -> None:
    second.folder.mkdir()
    taken = adopt_checkpoint(second, training_record(second, 1))
    former = second.former[1]
    (former / "checkpoint.pth.partial").write_bytes(b"of a later epoch")
    os.replace(former / "checkpoint.pth.partial", former / "checkpoint.pth")
    assert taken is not None
    assert find_checkpoint(second.folder) == taken


def test_a_training_with_averaged_weights_and_adamw_resumes_with_both(first: Job, tmp_path: Path) -> None:
    settings = {"optimizer": "AdamW", "lr": 0.001, "weight_decay": 0.05, "average_weights": True}
    job = replace(first, folder=tmp_path / "one", training=first.training.model_copy(update=settings))
    interrupt(job)
    checkpoint = torch.load(job.folder / "checkpoint.pth", weights_only=True)
    assert "ema_state_dict" in checkpoint
    assert "exp_avg_sq" in next(iter(checkpoint["optimizer"]["state"].values()))
    epochs, steps = checkpoint["meta"]["epoch"], int(checkpoint["ema_state_dict"]["steps"])
    assert steps == checkpoint["meta"]["iter"]
    again = replace(job, folder=tmp_path / "two", former=(job.folder,))
    interrupt(again)
    later = torch.load(again.folder / "checkpoint.pth", weights_only=True)
    assert later["meta"]["epoch"] > epochs
    assert int(later["ema_state_dict"]["steps"]) == later["meta"]["iter"] > steps

    # The average is another detector than the last weights.
    def trained(name: str, **changed: object) -> dict[str, torch.Tensor]:
        training = job.training.model_copy(update=changed)
        list(evaluate(replace(job, folder=tmp_path / name, identity=None, training=training)))
        weights: dict[str, torch.Tensor] = torch.load(tmp_path / name / "weights.pth", weights_only=True)["state_dict"]
        return weights

    average, last = trained("average", epochs=2), trained("last", epochs=2, average_weights=False)
    assert average.keys() == last.keys()
    assert not torch.equal(average["backbone.conv1.weight"], last["backbone.conv1.weight"])
