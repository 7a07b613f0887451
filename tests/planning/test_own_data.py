"""A data folder instead of a recipe: planned, searched, resumed, and what is wrong said in one line."""

import re
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from smnas_optuna.planning.own_data import search_name
from tests.commands import run
from tests.data.folder.test_layouts import digits  # noqa: F401  # a fixture
from tests.data_folders import Data, write_yolo_without_yaml

# The shortest training that a plan can be changed to.
QUICK = (
    *("--set", "structural.training.epochs=1", "--set", "structural.detector.fc_channels=16"),
    *("--set", "structural.space.heads=[ATSS, 2FC]", "--set", "structural.seeds=[]"),
    *("--set", "device.timing={images: 2, warmup: 1, rounds: 2}", "--set", "final={epochs: 1, repeats: 0}"),
)


@pytest.fixture
def photos(digits: Data, tmp_path: Path) -> Path:  # noqa: F811
    return write_yolo_without_yaml(tmp_path / "my photos", Data(digits.classes, {"train": digits.whole}))


@pytest.mark.takes_minutes
def test_a_folder_is_planned_searched_and_resumed(photos: Path, tmp_path: Path, lite_weights: Path) -> None:
    before = sorted(photos.rglob("*"))
    shown = run("run_study", photos, "--budget", "10m", "--dry-run", "--weights-dir", lite_weights, folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "structural.space.backbones: ['timm:tf_efficientnet_lite0']\n" in shown.stdout
    assert "study my-photos/structural: " in shown.stdout
    assert not (tmp_path / "work_dirs").exists()

    arguments = ("run_study", photos, "--budget", "10m", "--weights-dir", lite_weights, *QUICK)
    ended = run(*arguments, "--n-trials", 1, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    output = tmp_path / "work_dirs" / "my-photos"
    plan = yaml.safe_load((output / "recipe.yaml").read_text())
    assert plan["dataset"]["validation"] == str(output / "validation.txt")
    listed = [line for line in (output / "validation.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(listed) == 4
    assert f"plan: about {plan['structural']['trials']} trials of " in ended.stdout
    study = optuna.load_study(study_name="my-photos/structural", storage=f"sqlite:///{tmp_path}/smnas.db")
    (trial,) = (each for each in study.trials if each.state == TrialState.COMPLETE)
    assert trial.user_attrs["weights"] == "file tf_efficientnet_lite0.pth"
    assert (output / "best" / "README.md").is_file()
    assert sorted(photos.rglob("*")) == before

    again = run(*arguments, "--n-trials", 2, "--no-final", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "1 of 2 trials done" in again.stdout
    assert "plan:" not in again.stdout
    status = run("run_study", photos, "--status", folder=tmp_path)
    assert re.search(r"my-photos: searched for \d+s of its budget of 10m\n", status.stdout), status.stderr


def test_a_plan_is_for_one_folder(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "work_dirs" / "my-photos"
    shown = run("run_study", photos, "--status", folder=tmp_path)
    assert shown.returncode == 2
    assert shown.stderr == "error: work_dirs/my-photos: has no plan, so there is no search to show the status of\n"
    output.mkdir(parents=True)
    (output / "recipe.yaml").write_text(
        f"name: x\ndataset: {{kind: folder, root: {tmp_path}}}\nstructural: {{trials: 1, training: {{epochs: 1, "
        "batch_size: 1}}\n"
    )
    refused = run("run_study", photos, folder=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"error: work_dirs/my-photos/recipe.yaml: is the plan for {tmp_path}, not for {photos}; expected another "
        "--output, or --set name=\n"
    )


def test_what_cannot_be_searched_is_refused_before_anything_is_written(photos: Path, tmp_path: Path) -> None:
    for path in photos.rglob("*.txt"):
        if path.name != "classes.txt":
            path.write_text("9 0.5 0.5 0.1 0.1\n")
    refused = run("run_study", photos, "--budget", "10m", folder=tmp_path)
    assert refused.returncode == 2
    assert re.fullmatch(
        r"error: .+\.txt:1: found the class 9; classes.txt lists 4 classes, numbered from 0\n", refused.stderr
    )
    assert not (tmp_path / "work_dirs" / "my-photos" / "recipe.yaml").exists()


def test_a_search_is_named_after_its_folder(tmp_path: Path) -> None:
    description = tmp_path / "my cells" / "data.yaml"
    description.parent.mkdir()
    description.write_text("names: [a]\ntrain: images\n")
    assert search_name(description, ()) == "my-cells"
    assert search_name(description.parent, ()) == "my-cells"
    assert search_name(description, ["name=cells", "dataset.format=yolo"]) == "cells"
    (tmp_path / "coco128.yaml").write_text("names: [a]\ntrain: images\n")
    assert search_name(tmp_path / "coco128.yaml", ()) == "coco128"
