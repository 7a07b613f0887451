"""The command train: killed and resumed, with several processes, and with user errors."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

import smnas_optuna.detector.layers  # noqa: F401  # provides mmcv's operators
from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.errors import UserError
from smnas_optuna.export import export
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.detector import Detector
from smnas_optuna.recipe.settings import DigitsDataset
from smnas_optuna.train import train
from smnas_optuna.training.final import final_config
from tests.commands import Started, run, run_ranks

EPOCHS = 4


@pytest.fixture
def found(searched: Path) -> Path:
    """The folder with ``found.py``, the exported config of a trial's detector, with few epochs."""
    arguments = ("--study", "tiny/structural", "--trial", 0, "--output", "found.py", "--schedule", "1x")
    exported = run("export", *arguments, folder=searched)
    assert exported.returncode == 0, exported.stderr
    config = searched / "found.py"
    config.write_text(config.read_text(encoding="utf-8").replace("max_epochs=12", f"max_epochs={EPOCHS}"))
    return searched


def test_a_killed_training_resumes_after_its_last_epoch(found: Path) -> None:
    arguments = ("train", "found.py", "--output", "killed")
    with Started(*arguments, folder=found) as training:
        assert any("Epoch(val) [1]" in line for line in training.stdout)
        training.kill()
    ended = run(*arguments, "--resume", folder=found)
    assert ended.returncode == 0, ended.stderr
    first, *_, last = re.findall(r"Epoch\(train\) +\[(\d+)\]", ended.stdout)
    assert int(first) > 1
    assert last == str(EPOCHS)
    assert f"after {EPOCHS} epochs; checkpoints are in killed" in ended.stdout


def test_two_processes_of_torchs_launcher_train_with_the_learning_rate_of_the_whole_batch(found: Path) -> None:
    ranks = run_ranks(2, "train", "found.py", "--output", "two", folder=found)
    assert [code for code, *_ in ranks] == [0, 0], ranks
    first, second = (stdout for _, stdout, _ in ranks)
    assert first.count(f"after {EPOCHS} epochs; checkpoints are in two") == 1
    # An epoch has 8 images: one step with 4 images in each of the two processes.
    assert len(re.findall(rf"Epoch\(train\) +\[{EPOCHS}\]\[1/1\]", first)) == 1
    assert "the current batch size is 8. Scaling the original LR by 0.25." in first
    assert second == ""


@pytest.fixture(scope="module")
def written(cache: Path) -> Config:
    """A config whose data exist."""
    dataset = open_dataset(DigitsDataset(kind="digits", classes=2, train_images=8, val_images=4, width=64, height=48))
    return final_config(Architecture.parse("64x48 ResNet18(w=8) FPN(P2-P4,c=16) RPN 2FC"), dataset, Detector())


def refusal(config: Path, output: Path | None = None) -> str:
    with pytest.raises(UserError) as refused:
        train(config, output)
    return str(refused.value)


def without(key: str) -> Callable[[Config], object]:
    return lambda config: config.pop(key)


def with_value(place: str, value: object) -> Callable[[Config], object]:
    """Return a function that sets a key of a config, given by its dotted path."""
    parent, _, key = place.rpartition(".")

    def change(config: Any) -> None:
        for part in filter(None, parent.split(".")):
            config = config[part]
        config[key] = value

    return change


def joined(config: Any) -> None:
    """Give the training data by a root folder and relative paths, in a data set that repeats another."""
    dataset = config.train_dataloader.dataset
    annotations, images = Path(dataset.ann_file), Path(dataset.data_prefix.img)
    assert annotations.parent == images.parent
    dataset |= {
        "data_root": str(images.parent),
        "ann_file": annotations.name,
        "data_prefix": {"img": f"{images.name}/"},
    }
    config.train_dataloader.dataset = {"type": "RepeatDataset", "times": 2, "dataset": dataset}


def joined_elsewhere(config: Any) -> None:
    joined(config)
    config.train_dataloader.dataset.dataset.data_root = "elsewhere"


def several(config: Any) -> None:
    """Let the training data consist of two data sets, of which the second does not exist."""
    dataset = config.train_dataloader.dataset
    parts = [dataset, dataset | {"data_prefix": {"img": "elsewhere"}}]
    config.train_dataloader.dataset = {"type": "ConcatDataset", "datasets": parts}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("model"), "has no model; expected a training config, such as export writes"),
        (without("train_dataloader"), "has no train_dataloader; expected a training config"),
        (without("train_cfg"), "has no train_cfg; expected a training config"),
        (without("optim_wrapper"), "has no optim_wrapper; expected a training config"),
        (with_value("model", None), "has no model; expected a training config"),
        (with_value("val_dataloader", {"batch_size": 1}), "has no val_dataloader.dataset; expected a training config"),
        (
            with_value("train_dataloader.dataset.ann_file", "train.json"),
            "train_dataloader.dataset.ann_file train.json: no such file; expected the data set there, or a config that "
            "export has written with --data RECIPE --set dataset.root=FOLDER",
        ),
        (with_value("val_dataloader.dataset.ann_file", "val.json"), "val_dataloader.dataset.ann_file val.json: no suc"),
        (
            with_value("val_dataloader.dataset.data_prefix.img", "val"),
            "val_dataloader.dataset.data_prefix.img val: no such folder; expected the data set there",
        ),
        (with_value("val_evaluator.ann_file", "val.json"), "val_evaluator.ann_file val.json: no such file"),
        (
            with_value("model.backbone.init_cfg", {"type": "Pretrained", "checkpoint": "E2.pth"}),
            "model.backbone.init_cfg.checkpoint E2.pth: no such file; expected the weights there, or a config that "
            "export has written with --weights FILE",
        ),
        (
            joined_elsewhere,
            "train_dataloader.dataset.dataset.ann_file elsewhere/train.json: no such file; expected the data set there",
        ),
        (several, "train_dataloader.dataset.datasets[1].data_prefix.img elsewhere: no such folder"),
    ],
)
def test_an_incomplete_config_is_refused_before_anything_is_written(
    change: Callable[[Config], object],
    message: str,
    written: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    config = copy.deepcopy(written)
    change(config)
    config.dump("found.py")
    assert refusal(Path("found.py")).startswith(f"CONFIG found.py: {message}")
    assert [each.name for each in tmp_path.iterdir()] == ["found.py"]


def without_validation(config: Any) -> None:
    config.val_dataloader = config.val_evaluator = config.val_cfg = None


def fetched(config: Any) -> None:
    """Let the training data be on servers, one of them through a file backend of MMEngine."""
    elsewhere = {"ann_file": "train.json", "data_prefix": {"img": "train"}}
    config.train_dataloader.dataset |= elsewhere | {"data_root": "s3://bucket/digits/"}
    config.val_dataloader.dataset |= elsewhere | {"backend_args": {"backend": "petrel"}}


@pytest.mark.parametrize("change", [lambda config: None, joined, without_validation, fetched])
def test_an_unwritable_output_folder_is_refused(
    change: Callable[[Config], object], written: Config, tmp_path: Path
) -> None:
    config = copy.deepcopy(written)
    change(config)
    config.dump(str(tmp_path / "found.py"))
    output = tmp_path / "found.py" / "output"
    assert refusal(tmp_path / "found.py", output) == f"--output {output}: cannot be written: Not a directory"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; expected one that smnas_optuna.export has written"),
        ("model = (", "cannot be read: SyntaxError"),
        ("import os\nthreshold = 0.5\n", "has no model; expected a training config"),
    ],
)
def test_a_file_that_is_no_config_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    config = tmp_path / "wrong.py"
    if content is not None:
        config.write_text(content, encoding="utf-8")
    assert refusal(config).startswith(f"CONFIG {config}: {message}")


def test_a_config_whose_coco_images_are_absent_is_refused_in_one_line(tmp_path: Path) -> None:
    export(output=tmp_path / "e2.py", zoo="E2")
    message = (
        "error: CONFIG e2.py: train_dataloader.dataset.ann_file data/coco/annotations/instances_train2017.json: no "
    )
    ended = run("train", "e2.py", folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith(message)
    assert len(ended.stderr.splitlines()) == 1
    ranks = run_ranks(2, "train", "e2.py", folder=tmp_path)
    assert all(code for code, *_ in ranks)
    stderr = "".join(text for *_, text in ranks)
    assert stderr.count("error: CONFIG") == stderr.count(message) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["e2.py"]
