from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from smnas_optuna.data.datasets import DatasetSplit, LocatedSplit
from smnas_optuna.data.inspection import Fault
from smnas_optuna.data.picture_file import Depth, Picture, inspect_picture
from smnas_optuna.data.pictures import inspect_pictures, shared_pictures

NOISE = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)


def write(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(NOISE + np.uint8(shade)).save(path)
    return path


def record(name: str, width: float = 32, height: float = 24) -> dict[str, Any]:
    return {"id": 1, "file_name": name, "width": width, "height": height}


def inspected(
    folder: Path, *records: dict[str, Any], depth: Depth = "header"
) -> tuple[Mapping[Path, Picture], tuple[Fault, ...]]:
    split = LocatedSplit(DatasetSplit(folder / "train.json", folder), "", "", "")
    return inspect_pictures("train", split, records, depth)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff"])
@pytest.mark.parametrize("depth", ["header", "pixels"])
def test_an_image_is_opened(tmp_path: Path, suffix: str, depth: Depth) -> None:
    path = write(tmp_path / f"a.{suffix}")
    assert inspect_picture(path, depth) == Picture(path.stat().st_size, (32, 24))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_the_one_in_training(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(NOISE).save(tmp_path / "a.jpg", exif=exif)
    seen = cv2.imread(str(tmp_path / "a.jpg"))
    assert seen is not None
    height, width, _ = seen.shape
    picture = inspect_picture(tmp_path / "a.jpg", "header")
    assert picture.size == (width, height)
    assert picture.is_turned == ((width, height) == (24, 32))


def test_images_as_annotated_have_no_faults(tmp_path: Path) -> None:
    paths = [write(tmp_path / name) for name in ("a.png", "night/b.jpg")]
    pictures, faults = inspected(tmp_path, record("a.png"), record("night/b.jpg", 32.0, 24.0))
    assert list(pictures) == paths
    assert faults == ()


@pytest.mark.parametrize("depth", ["name", "header", "pixels"])
def test_absent_images_stop_a_search(tmp_path: Path, depth: Depth) -> None:
    write(tmp_path / "a.png")
    absent = [f"{number}.png" for number in range(5)]
    pictures, faults = inspected(tmp_path, *map(record, ["a.png", *absent]), depth=depth)
    assert list(pictures) == [tmp_path / "a.png"]
    what = f"images that are absent from {tmp_path}"
    assert faults == (Fault("train", what, stops=True, count=5, examples=("0.png", "1.png", "2.png")),)


def test_an_absent_folder_stops_a_search(tmp_path: Path) -> None:
    folder = tmp_path / "absent"
    assert inspected(folder, record("a.png")) == ({}, (Fault("train", f"no folder of images {folder}", stops=True),))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image"),
        (b"<html>404 not found</html>", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image"),
    ],
)
def test_a_file_that_is_no_image_stops_a_search(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    _, faults = inspected(tmp_path, record("a.png"))
    assert faults == (
        Fault("train", "images that cannot be opened", stops=True, count=1, examples=(f"a.png: {reason}",)),
    )
    assert inspected(tmp_path, record("a.png"), depth="name")[1] == ()


def test_a_format_that_training_cannot_read_stops_a_search(tmp_path: Path) -> None:
    write(tmp_path / "a.ico")
    assert cv2.imread(str(tmp_path / "a.ico")) is None
    _, (fault,) = inspected(tmp_path, record("a.ico"))
    assert (fault.stops, fault.examples) == (True, ("a.ico: ICO, which OpenCV cannot read",))


@pytest.mark.parametrize(("suffix", "stops"), [("jpg", False), ("png", True), ("bmp", True)])
def test_decoding_finds_a_truncated_image_which_stops_a_search_if_training_cannot_read_it(
    tmp_path: Path, suffix: str, stops: bool
) -> None:
    path = write(tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 4 // 5])
    assert inspected(tmp_path, record(path.name))[1] == ()
    _, (fault,) = inspected(tmp_path, record(path.name), depth="pixels")
    assert fault.examples[0].startswith(f"{path.name}: image file is truncated")
    assert fault.stops == stops == (cv2.imread(str(path)) is None)


def test_another_size_than_annotated_is_a_warning(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(NOISE).save(tmp_path / "b.jpg", exif=exif)
    _, (fault,) = inspected(tmp_path, record("a.png", 64, 48), record("b.jpg"))
    assert (fault.stops, fault.what) == (False, "images of another size than their annotations say")
    assert fault.examples == (
        "a.png: 32x24, annotated as 64x48",
        "b.jpg: 24x32 as its EXIF turns it, annotated as 32x24",
    )


def test_images_in_both_splits_are_found_by_path_and_by_content(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("train", "val")}
    for folder in folders.values():
        write(folder / "a.bmp", 1)
    write(folders["train"] / "b.bmp", 2)
    write(folders["val"] / "b.bmp", 3)  # of the same name and length, yet another
    write(folders["val"] / "c.bmp", 2)
    write(tmp_path / "both.png")
    train, val = (
        inspected(folder, *(record(path.name) for path in sorted(folder.iterdir())), record("../both.png"))[0]
        for folder in folders.values()
    )
    assert shared_pictures(train, val) == {
        tmp_path / "both.png": tmp_path / "both.png",
        folders["val"] / "a.bmp": folders["train"] / "a.bmp",
        folders["val"] / "c.bmp": folders["train"] / "b.bmp",
    }


def test_images_that_were_not_opened_are_compared_by_path_only(tmp_path: Path) -> None:
    one, other, both = (write(tmp_path / f"{name}.png") for name in ("one", "other", "both"))
    assert shared_pictures({one: Picture(), both: Picture()}, {other: Picture(), both: Picture()}) == {both: both}
