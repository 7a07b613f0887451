"""Output and exit codes; ``data/test_inspection.py`` and ``data/test_pictures.py`` test the faults themselves."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from smnas_optuna.check_data import Findings, inspect_dataset, refuse_unusable
from smnas_optuna.data.picture_file import Depth
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import InputSize
from smnas_optuna.recipe.recipe_file import load_recipe
from tests.commands import run
from tests.conftest import TINY
from tests.data.folder.test_splitting import noise
from tests.data.folder.test_splitting import write as write_images
from tests.published_formats import Thing, bdd_frames_of_2020, write_bdd, write_voc

Spoil = Callable[[Path], object]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with COCO data without faults, and a recipe for them."""
    random = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        (tmp_path / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(1, count + 1):
            name = f"{split}_{number}.png"
            Image.fromarray(random.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(tmp_path / split / name)
            images.append({"id": number, "file_name": name, "width": 64, "height": 48})
            for label in (1, 2):
                box = {"bbox": [number, 2, 16 * label, 16], "area": 256 * label, "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": label, **box})
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    splits = {split: {"annotations": f"{split}.json", "images": split} for split in ("train", "val")}
    recipe = {**TINY, "dataset": {"kind": "coco", "root": ".", **splits}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return tmp_path


def check(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run("check_data", "recipe.yaml", *arguments, folder=folder)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def row(printed: str, *first: str) -> list[str]:
    """Return the other cells of the row of a printed table that begins with these."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines() if line[:1] == "│"]
    (found,) = [cells[len(first) :] for cells in rows if cells[: len(first)] == list(first)]
    return found


def inspect(*overrides: str, depth: Depth = "header") -> tuple[Findings, str | None]:
    """Inspect the data in the working directory, and return the findings and the message with which it is refused."""
    recipe = load_recipe("recipe.yaml", overrides)
    sizes = [InputSize.parse(text) for text in recipe.structural.space.input_sizes]
    findings = inspect_dataset(recipe.dataset, sizes, depth)
    try:
        refuse_unusable(recipe.dataset, findings.faults)
    except UserError as error:
        return findings, str(error)
    return findings, None


def test_a_data_set_without_faults_is_summarised(data: Path) -> None:
    ended = check(data)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("tiny: coco data set, each image checked by its header\n")
    assert row(ended.stdout, "images") == ["3", "2"]
    assert row(ended.stdout, "boxes") == ["6", "4"]
    assert row(ended.stdout, "width x height") == ["64x48 (3)", "64x48 (2)"]
    assert row(ended.stdout, "dog") == ["3", "50.0", "2", "50.0"]
    assert row(ended.stdout, "val", "as they are") == ["100.0", "0.0", "0.0", "16 to 23, median 19"]
    assert "scaled to 64x48" in ended.stdout
    assert ended.stdout.endswith("\nno fault found\n")


def test_json_has_the_same_content(data: Path) -> None:
    edit(data / "train.json", lambda content: content["annotations"][0].update(bbox=[1, 2, 0, 3]))
    ended = check(data, "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    found = json.loads(ended.stdout)
    assert found["splits"]["train"]["boxes_per_class"] == {"cat": 2, "dog": 3}
    assert found["splits"]["val"]["box_sizes"][1]["input_size"] == "64x48"
    (fault,) = found["faults"]
    assert (fault["place"], fault["stops"], fault["count"]) == ("train", False, 1)
    assert fault["examples"] == ["train_1.png: annotation 1, cat, [1, 2, 0, 3] in 64x48"]


def test_warnings_are_printed_and_the_exit_code_is_0(data: Path) -> None:
    (data / "val" / "val_1.png").write_bytes((data / "train" / "train_2.png").read_bytes())
    edit(data / "val.json", lambda content: content["annotations"][0].update(bbox=[70, 2, 9, 9]))
    Image.fromarray(np.zeros((24, 32, 3), dtype=np.uint8)).save(data / "train" / "train_1.png")
    ended = check(data)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.partition("warning: ")[2].splitlines() == [
        "train: images of another size than their annotations say: 1",
        "    train_1.png: 32x24, annotated as 64x48",
        "warning: val: boxes outside their image, which training passes over: 1",
        "    val_1.png: annotation 1, cat, [70, 2, 9, 9] in 64x48",
        "warning: train and val: validation images that are also training images: 1",
        f"    {data}/val/val_1.png, as {data}/train/train_2.png",
    ]


def test_all_errors_are_printed_and_the_last_line_is_the_message_of_a_search(data: Path) -> None:
    edit(data / "val.json", lambda content: [box.update(image_id=90) for box in content["annotations"][1:3]])
    edit(data / "train.json", lambda content: content["annotations"][0].update(bbox=[1, 2, 0, 3]))
    (data / "train" / "train_2.png").unlink()
    ended = check(data)
    assert ended.returncode == 2
    printed = [line for line in ended.stdout.splitlines() if line.startswith(("error", "warning"))]
    assert printed == [
        "error: train: images that are absent from train: 1",
        "error: val: annotations of an unknown image_id: 2",
        "warning: train: boxes without width or height, which training passes over: 1",
    ]
    assert "    annotation 2 has 90\n    annotation 3 has 90\n" in ended.stdout
    assert ended.stderr == run("run_study", "recipe.yaml", folder=data).stderr
    assert ended.stderr == (
        "error: dataset.train.images: train: train_2.png of 3 listed images absent; train.json lists them\n"
    )


@pytest.mark.parametrize(
    ("spoil", "shown", "message"),
    [
        pytest.param(
            lambda data: (data / "val.json").unlink(),
            "val: dataset.val.annotations: val.json: no such file",
            "dataset.val.annotations: val.json: no such file",
            id="missing json",
        ),
        pytest.param(
            lambda data: (data / "val.json").write_text("["),
            "val: dataset.val.annotations: val.json: not JSON",
            "dataset.val.annotations: val.json: not JSON, so not COCO annotations",
            id="not json",
        ),
        pytest.param(
            lambda data: edit(data / "val.json", lambda content: content["categories"].reverse()),
            "train and val: dataset.val.annotations: val.json must have",
            "dataset.val.annotations: val.json must have its categories in the order of",
            id="other order of classes",
        ),
        pytest.param(
            lambda data: (data / "val" / "val_2.png").write_bytes(b"<html>"),
            "val: images that cannot be opened: 1",
            "dataset.val: images that cannot be opened: 1, such as val_2.png: not an image",
            id="no image",
        ),
        pytest.param(
            lambda data: edit(data / "train.json", lambda c: [box.update(iscrowd=1) for box in c["annotations"]]),
            "train: no box to learn from",
            "dataset.train: no box to learn from or be scored on",
            id="nothing to learn from",
        ),
    ],
)
def test_a_split_that_cannot_be_trained_on_is_refused_and_the_other_one_is_summarised(
    data: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil, shown: str, message: str
) -> None:
    monkeypatch.chdir(data)
    spoil(data)
    findings, refusal = inspect()
    assert [str(fault).startswith(shown) for fault in findings.faults if fault.stops] == [True]
    assert findings.splits["train"].images == 3
    assert refusal is not None
    assert refusal.startswith(message)


def test_a_truncated_image_is_found_by_checking_pixels_only(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    path = data / "train" / "train_1.png"
    path.write_bytes(path.read_bytes()[:-2000])
    assert inspect(depth="header")[1] is None
    refusal = inspect(depth="pixels")[1]
    assert refusal is not None
    assert "train_1.png: image file is truncated" in refusal
    path.write_bytes(b"")
    assert inspect(depth="name")[1] is None


def test_data_in_vocs_format_are_inspected(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    things = {"a": [Thing("dog", (1, 1, 20, 30)), Thing("dog", (9, 9, 9, 30))]}
    write_voc(data, "VOC2007/trainval", {**things, "b": [Thing("cat", (4, 4, 60, 40), difficult=True)]})
    write_voc(data, "VOC2007/test", {"c": [Thing("cat", (4, 4, 40, 40))]})
    sets = "train: [VOC2007/trainval], val: [VOC2007/test]"
    findings, refusal = inspect(f"dataset={{kind: voc, {sets}, classes: [cat, dog]}}")
    assert refusal is None
    assert findings.splits["train"].crowds == 1
    assert findings.splits["train"].boxes_per_class == {"cat": 0, "dog": 1}
    assert findings.splits["val"].boxes_per_class == {"cat": 1, "dog": 0}
    assert [fault.examples[0] for fault in findings.faults] == [
        "VOC2007/JPEGImages/a.jpg: annotation 2, dog, [8, 8, 0, 21] in 64x48",
        "cat",
        "dog",
    ]


def test_data_in_bdds_format_are_inspected(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    for name in ("train", "val"):
        frames = bdd_frames_of_2020({f"{name}.jpg": [Thing("car", (10, 20, 110, 70))]})
        write_bdd(data, f"labels/det_20/det_{name}.json", f"images/100k/{name}", frames)
    (data / "images/100k/val/val.jpg").write_bytes((data / "train/train_1.png").read_bytes())
    findings, refusal = inspect("dataset={kind: bdd}")
    assert refusal is None
    assert findings.splits["train"].image_sizes == {"1280x720": 1}
    assert findings.splits["train"].boxes_per_class["car"] == 1
    assert "val.jpg: 64x48, annotated as 1280x720" in findings.faults[-1].examples


def test_an_invalid_recipe_is_reported_in_one_line(data: Path) -> None:
    ended = check(data, "--set", "dataset.trai=1")
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "did you mean train?" in ended.stderr


def test_an_absent_data_set_is_a_single_error(tmp_path: Path) -> None:
    ended = run("check_data", "coco", folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: dataset.train.annotations: ")
    assert ended.stderr.endswith(": no such file\n")
    assert list(tmp_path.iterdir()) == []


def test_check_data_does_not_import_torch() -> None:
    code = "import sys, smnas_optuna.check_data; print({'torch', 'mmdet', 'mmcv', 'mmengine'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"


def test_a_data_folder_is_summarised_and_its_problems_are_counted(tmp_path: Path) -> None:
    write_images(tmp_path, **{f"{number}": noise(number) for number in range(10)})
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text("0 0.5 0.5 0.2 0.3\n1 0.3 0.4 0.1 0.2\n")
    (tmp_path / "3.txt").write_text("0 0.5 0.5 1.2 0.3\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\ncow\n")
    before = sorted(tmp_path.iterdir())
    ended = run("check_data", ".", folder=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    printed = ended.stdout
    assert f"{tmp_path}: YOLO, by classes.txt; 3 classes: cat, dog, cow" in printed
    assert "training: 7 images with 14 boxes, from the folder itself, less these" in printed
    assert row(printed, "images") == ["7", "2"]
    assert row(printed, "cow") == ["0", "0.0", "0", "0.0"]
    assert "warning: train: images with labels out of range, 0 to 1, which are left out: 1" in printed
    assert "warning: val: classes without a box that counts: 1" in printed
    assert sorted(tmp_path.iterdir()) == before
    ended = run("check_data", ".", "--set", "dataset.format=voc", folder=tmp_path)
    assert ended.returncode == 2
    assert (
        ended.stderr == f"error: {tmp_path}: 10 images, and no labels were found; expected labels in the format voc\n"
    )
    ended = run("check_data", ".", "--set", "dataset.formt=voc", folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == "error: .: dataset.formt: unknown key; did you mean format?\n"
