"""The command pretrain: in one process, killed and resumed, under torch's launcher, and with user errors."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

import smnas_optuna.detector.layers  # noqa: F401  # provides mmcv's operators
from tests.commands import Started, run, run_ranks
from tests.labelled_digits import CLASSES, make_labelled_digits

CODE = "ResNet18(w=8)"
QUICK = ("--batch-size", 32, "--lr", 0.8, "--input", 32, "--workers", 0)
CHANCE = 100 / len(CLASSES)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled_digits(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data: Path) -> tuple[Path, str]:
    """The output folder of a pre-training, and the last line that it printed."""
    folder = data / "trained"
    ended = run("pretrain", CODE, "--data", data, *QUICK, "--epochs", 12, "--output", folder, folder=data)
    assert ended.returncode == 0, ended.stderr
    return folder, ended.stdout.splitlines()[-1]


def top1(line: str) -> float:
    match = re.fullmatch(r".*: top-1 (\d+\.\d) %, top-5 100\.0 %; \S+/backbone\.pth; python -m .*", line)
    assert match, line
    return float(match[1])


def test_a_backbone_learns_and_its_file_has_its_code(trained: tuple[Path, str]) -> None:
    folder, line = trained
    assert top1(line) > 2 * CHANCE
    pretrained = torch.load(folder / "backbone.pth", weights_only=True)
    assert pretrained["meta"]["code"] == CODE
    assert tuple(pretrained["meta"]["classes"]) == CLASSES
    assert pretrained["meta"]["top1"] == pytest.approx(top1(line), abs=0.05)


def test_the_printed_command_exports_a_detector_with_the_pretrained_backbone(
    trained: tuple[Path, str], searched: Path
) -> None:
    folder, line = trained
    arguments = line.rpartition("smnas_optuna.export ")[2].split()
    arguments = [{"NAME": "tiny/structural", "N": "0"}.get(argument, argument) for argument in arguments]
    exported = run("export", *arguments, folder=searched)
    assert exported.returncode == 0, exported.stderr
    init_default_scope("mmdet")
    detector = MODELS.build(Config.fromfile(str(searched / "found.py")).model)
    detector.init_weights()
    pretrained = torch.load(folder / "backbone.pth")["state_dict"]
    assert all(torch.equal(tensor, pretrained[key]) for key, tensor in detector.backbone.state_dict().items())

    del pretrained["layer2.0.conv1.weight"]
    torch.save({"state_dict": pretrained}, searched / "cut.pth")
    refused = run("export", *arguments, "--weights", "cut.pth", folder=searched)
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: --weights cut.pth does not fit: expected layer2.0.conv1.weight of shape (16, 8, 3, 3), found None\n"
    )


def test_a_killed_pretraining_resumes_after_its_last_epoch(data: Path) -> None:
    arguments = ("pretrain", CODE, "--data", data, *QUICK, "--epochs", 8, "--output", data / "killed", "--resume")
    with Started(*arguments, folder=data) as training:
        assert any("Epoch(train) [3]" in line for line in training.stdout)
        training.kill()
    assert not (data / "killed" / "backbone.pth").exists()
    ended = run(*arguments, folder=data)
    assert ended.returncode == 0, ended.stderr
    first, *_, last = re.findall(r"Epoch\(train\) +\[(\d+)\]", ended.stdout)
    assert int(first) > 2
    assert last == "8"
    assert top1(ended.stdout.splitlines()[-1]) > 1.5 * CHANCE


def test_two_processes_of_torchs_launcher_train_one_backbone_and_print_the_result_once(data: Path) -> None:
    arguments = (CODE, "--data", data, *QUICK, "--epochs", 12, "--output", data / "two")
    ranks = run_ranks(2, "pretrain", *arguments, folder=data)
    assert [code for code, *_ in ranks] == [0, 0], ranks
    first, second = (stdout for _, stdout, _ in ranks)
    assert len(re.findall(r"Epoch\(val\) +\[12\]", first)) == 1
    # 400 images in 12 steps of 32, 16 for each process
    assert "Epoch(train) [12][12/12]" in first
    [line] = [line for line in first.splitlines() if line.startswith(CODE)]
    assert second == ""
    assert top1(line) > 2 * CHANCE
    assert torch.load(data / "two" / "backbone.pth", weights_only=True)["meta"]["top1"] > 2 * CHANCE


def empty_class(data: Path) -> None:
    for image in (data / "val" / CLASSES[1]).iterdir():
        image.rename(image.with_suffix(".txt"))


@pytest.mark.parametrize(
    ("code", "options", "prepare", "message"),
    [
        (CODE, ["--data", "nowhere"], None, "--data nowhere: no such folder; expected one with train/CLASS"),
        (CODE, [], lambda data: shutil.rmtree(data / "train"), "data/train: no such folder; expected it to have"),
        (CODE, [], lambda data: shutil.rmtree(data / "val"), "data/val: no such folder; expected it to have"),
        (CODE, [], lambda data: shutil.rmtree(data / "val" / CLASSES[2]), "only train/ has the class 'digit 2'"),
        (CODE, [], lambda data: (data / "val" / "x").mkdir(), "only val/ has the class 'x'; expected the same in"),
        (CODE, [], empty_class, "data/val/digit 1: no image; expected some of .jpg"),
        (CODE, ["--batch-size", 1], None, "--batch-size 1: expected two images or more for each of 1 processes"),
        (CODE, ["--output", "data/train/digit 0/0.png/x"], None, "--output data/train/digit 0/0.png/x: cannot be"),
        ("basicblock_8_1-1-3-1", [], None, "CODE: backbone code 'basicblock_8_1-1-3-1': at character 18 found '3'"),
        ("basicblock_7_1-1-1-1", [], None, "found the odd base 7"),
        ("FSAF", [], None, "CODE: 'FSAF': its backbone has no code"),
    ],
)
def test_a_user_error_is_one_line_with_exit_code_2(
    code: str,
    options: list[object],
    prepare: Callable[[Path], None] | None,
    message: str,
    data: Path,
    tmp_path: Path,
) -> None:
    for name in CLASSES:
        for split in ("train", "val"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            (tmp_path / "data" / split / name / "0.png").touch()
    if prepare:
        prepare(tmp_path / "data")
    ended = run("pretrain", code, "--data", "data", *options, folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_an_unreadable_image_in_a_loader_process_is_named(data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "data" / "train" / CLASSES[0] / "broken.png"
    for split in ("train", "val"):
        shutil.copytree(data / split, tmp_path / "data" / split)
    broken.write_bytes((tmp_path / "data" / "train" / CLASSES[0] / "0.png").read_bytes()[:60])
    ended = run("pretrain", CODE, "--data", "data", *QUICK[:-1], 1, folder=tmp_path)
    assert ended.returncode == 2
    assert f"error: --data {broken}: not a readable image: " in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "error: --data nowhere: no such folder"),
        (["--batch-size", 402], "error: --batch-size 402: expected no more than the 400 training images"),
        (["--resume"], "/checkpoint.pth belongs to another training: found another_20260101, expected ResNet18(w=8) "),
    ],
)
def test_a_user_error_under_torchs_launcher_is_printed_once(
    options: list[object], message: str, data: Path, tmp_path: Path
) -> None:
    torch.save({"meta": {"epoch": 1, "experiment_name": "another_20260101"}}, tmp_path / "checkpoint.pth")
    ranks = run_ranks(2, "pretrain", CODE, "--data", data, *QUICK, "--output", tmp_path, *options, folder=tmp_path)
    assert all(code for code, *_ in ranks)
    stderr = "".join(text for *_, text in ranks)
    assert stderr.count("error: --") == stderr.count(message) == 1
