import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from sklearn.datasets import load_digits

from smnas_optuna.data.cache import cache_folder
from smnas_optuna.data.digits import make_digits

WIDTH, HEIGHT = 160, 120
SPLITS = ("train", "val")
Map = npt.NDArray[np.float32]
Scene = tuple[Map, list[dict[str, Any]]]  # an image, height x width x 3, and its annotations


@pytest.fixture(scope="module")
def digits() -> Iterator[Path]:
    """All ten digits on 120 scenes to train on and 60 to validate on."""
    with pytest.MonkeyPatch.context() as environment, tempfile.TemporaryDirectory() as folder:
        environment.setenv("SMNAS_CACHE", folder)
        yield make_digits(10, 120, 60, width=WIDTH, height=HEIGHT)


def read_image(path: Path) -> Map:
    image = cv2.imread(str(path))
    assert image is not None
    return image.astype(np.float32)


def scenes(folder: Path, split: str) -> Iterator[Scene]:
    content = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
    for image in content["images"]:
        boxes = [box for box in content["annotations"] if box["image_id"] == image["id"]]
        yield read_image(folder / split / image["file_name"]), boxes


def darkness(image: Map, boxes: list[dict[str, Any]]) -> tuple[Map, npt.NDArray[np.bool_]]:
    """Return by how much each pixel is darker than the background, and which pixels are outside of all boxes.

    The background is a 3 x 4 grid of colours, enlarged; it is fitted to the pixels outside of the boxes.
    """
    height, width, _ = image.shape
    outside = np.ones((height, width), dtype=np.bool_)
    for x, y, w, h in (box["bbox"] for box in boxes):
        outside[y : y + h, x : x + w] = False
    grid = np.eye(12, dtype=np.float32).reshape(12, 3, 4)
    basis = np.stack([cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC).ravel() for part in grid], 1)
    pixels = image.reshape(-1, 3)
    colours = np.linalg.lstsq(basis[outside.ravel()], pixels[outside.ravel()], rcond=None)[0]
    return (basis @ colours - pixels).mean(1).reshape(height, width), outside


def test_the_data_is_the_same_wherever_and_whenever_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for name in ("one", "other"):
        monkeypatch.setenv("SMNAS_CACHE", str(tmp_path / name))
        folder = make_digits(10, 12, 6, width=96, height=64)
        assert folder.parent == tmp_path / name
        made.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")})
    assert made[0] == made[1]
    assert len(made[0]) == 12 + 6 + 2


def test_existing_data_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMNAS_CACHE", str(tmp_path))
    folder = make_digits(3, 4, 2, width=64, height=48)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert make_digits(3, 4, 2, width=64, height=48) == folder
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_other_arguments_make_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMNAS_CACHE", str(tmp_path))
    folders = {
        make_digits(classes, train, val, width=width, height=height)
        for classes, train, val, width, height in [
            (2, 3, 4, 64, 48),
            (3, 3, 4, 64, 48),
            (2, 4, 4, 64, 48),
            (2, 3, 5, 64, 48),
            (2, 3, 4, 65, 48),
            (2, 3, 4, 64, 49),
        ]
    }
    assert len(folders) == len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("split", SPLITS)
def test_pycocotools_loads_the_annotations(digits: Path, split: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(digits / f"{split}.json"))
    assert len(coco.getImgIds()) == {"train": 120, "val": 60}[split]
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list("0123456789")
    annotations = coco.loadAnns(coco.getAnnIds())
    assert {annotation["category_id"] for annotation in annotations} == set(coco.getCatIds())
    assert {annotation["image_id"] for annotation in annotations} == set(coco.getImgIds())
    for annotation in annotations:
        _, _, width, height = annotation["bbox"]
        assert annotation["area"] == width * height
        assert annotation["iscrowd"] == 0
    for image in coco.loadImgs(coco.getImgIds()):
        picture = read_image(digits / split / image["file_name"])
        assert picture.shape == (image["height"], image["width"], 3) == (HEIGHT, WIDTH, 3)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 10), st.integers(1, 3), st.integers(48, 200), st.integers(48, 200))
def test_every_scene_has_boxes_that_lie_inside_and_overlap_little(
    classes: int, images: int, width: int, height: int
) -> None:
    with pytest.MonkeyPatch.context() as environment, tempfile.TemporaryDirectory() as folder:
        environment.setenv("SMNAS_CACHE", folder)
        made = make_digits(classes, images, images, width=width, height=height)
        for split in SPLITS:
            count = 0
            for image, annotations in scenes(made, split):
                count += 1
                assert image.shape == (height, width, 3)
                boxes = [annotation["bbox"] for annotation in annotations]
                assert 1 <= len(boxes) <= 6
                assert {annotation["category_id"] for annotation in annotations} <= set(range(classes))
                for x, y, w, h in boxes:
                    assert 0 <= x < x + w <= width
                    assert 0 <= y < y + h <= height
                covered = np.zeros((len(boxes), height, width), dtype=np.bool_)
                for mask, (x, y, w, h) in zip(covered, boxes, strict=True):
                    mask[y : y + h, x : x + w] = True
                for number, mask in enumerate(covered):
                    for other in covered[:number]:
                        assert (mask & other).sum() <= 0.1 * min(mask.sum(), other.sum())
            assert count == images


def test_scenes_vary_and_some_boxes_overlap(digits: Path) -> None:
    drawn = [(image, [box["bbox"] for box in boxes]) for split in SPLITS for image, boxes in scenes(digits, split)]
    assert len({image.tobytes() for image, _ in drawn}) == len(drawn)
    assert len({len(boxes) for _, boxes in drawn}) > 3
    sides = [max(w, h) for _, boxes in drawn for _, _, w, h in boxes]
    assert max(sides) > 2 * min(sides)
    overlapping = 0
    for _, boxes in drawn:
        covered = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
        for x, y, w, h in boxes:
            covered[y : y + h, x : x + w] += 1
        overlapping += bool(covered.max() > 1)
    assert overlapping > 5


@pytest.mark.parametrize("split", SPLITS)
def test_all_ink_is_in_a_box_and_reaches_each_of_its_sides(digits: Path, split: str) -> None:
    sides = []
    for image, annotations in scenes(digits, split):
        dark, outside = darkness(image, annotations)
        # Grain alone: its standard deviation is 6 per channel, 3.5 in the mean of three.
        assert dark[outside].max() < 20
        assert dark[outside].std() < 4
        for x, y, w, h in (annotation["bbox"] for annotation in annotations):
            digit = dark[y : y + h, x : x + w]
            ink = np.percentile(digit, 95)
            assert ink > 60
            sides += [line.max() / ink for line in (digit[0], digit[-1], digit[:, 0], digit[:, -1])]
    # The faintest sides are hardly above the grain, a side without ink is far below.
    assert np.mean(np.array(sides) > 0.15) > 0.98


def test_validation_scenes_are_composed_of_other_digits(digits: Path) -> None:
    """Find for each box which of the 1,797 digits it shows."""

    def normalised(patch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        vector = cv2.resize(patch, (16, 16), interpolation=cv2.INTER_AREA).ravel()
        centred: npt.NDArray[np.float32] = vector - vector.mean()
        return centred / np.linalg.norm(centred)

    data = load_digits()
    references = []
    for digit in data.images.astype(np.float32) / 16:
        grown = np.clip(cv2.resize(digit, (64, 64), interpolation=cv2.INTER_CUBIC) * 1.3 - 0.15, 0, 1)
        rows, columns = np.nonzero(grown > 0.2)
        references.append(normalised(grown[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]))
    all_references = np.array(references)
    shown: dict[str, list[int]] = {split: [] for split in SPLITS}
    right_class = []
    for split in SPLITS:
        for image, annotations in scenes(digits, split):
            dark, _ = darkness(image, annotations)
            for annotation in annotations:
                x, y, w, h = annotation["bbox"]
                found = int(np.argmax(all_references @ normalised(dark[y : y + h, x : x + w])))
                shown[split].append(found)
                right_class.append(data.target[found] == annotation["category_id"])
    assert np.mean(right_class) > 0.98
    train, val = set(shown["train"]), set(shown["val"])
    assert len(train) > 200
    assert len(val) > 100
    # If both were composed of the same digits, about 18 would be common; a blurred one may be mistaken.
    assert len(train & val) <= 2


MAKE_MANY = "from smnas_optuna.data.digits import make_digits; make_digits(10, 500, 100, width=96, height=64)"


def test_incomplete_data_of_a_killed_run_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMNAS_CACHE", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", MAKE_MANY]) as process:
        while process.poll() is None and not any(tmp_path.rglob("*.png")):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    left = list(tmp_path.iterdir())
    assert len(left) == 1
    assert len(list(left[0].rglob("*.png"))) < 600
    folder = make_digits(10, 500, 100, width=96, height=64)
    assert folder not in left
    assert len(list(folder.rglob("*.png"))) == 600
    assert (folder / "val.json").is_file()


def test_two_processes_may_make_the_data_at_once(tmp_path: Path) -> None:
    program = (
        "from smnas_optuna.data.digits import make_digits\n"
        "print('ready', flush=True)\n"
        "input()\n"
        "print(make_digits(10, 150, 50, width=96, height=64))\n"
    )
    environment = {**os.environ, "SMNAS_CACHE": str(tmp_path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    folders = []
    for process in processes:
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
        folders.append(Path(output.strip()))
    assert folders[0] == folders[1]
    assert list(tmp_path.iterdir()) == [folders[0]]
    assert len(list(folders[0].rglob("*.png"))) == 200


def test_environment_variables_set_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    monkeypatch.setenv("SMNAS_CACHE", "/demo")
    assert cache_folder() == Path("/demo")
    monkeypatch.delenv("SMNAS_CACHE")
    assert cache_folder() == Path("/scratch/smnas_optuna")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/someone/.cache/smnas_optuna")
