import contextlib
import copy
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.errors import UserError
from smnas_optuna.recipe.settings import CocoDataset, DigitsDataset

BCCD = Path(__file__).resolve().parents[3] / "shared" / "data" / "bccd_320"
Content = dict[str, Any]

# Categories neither sorted nor numbered without gaps, one image in a folder of its own.
CONTENT: Content = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 32, "height": 24},
        {"id": 3, "file_name": "night/b.png", "width": 32, "height": 24},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 8, 9.5], "area": 76, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 4, "bbox": [0, 0, 32, 24], "area": 768, "iscrowd": 0},
    ],
    "categories": [{"id": 90, "name": "zebra"}, {"id": 4, "name": "ant"}, {"id": 17, "name": "mole"}],
}


def coco_dataset(root: Path) -> CocoDataset:
    return CocoDataset.model_validate(
        {"root": root, **{name: {"annotations": f"{name}.json", "images": name} for name in ("train", "val")}}
    )


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    """A data set of two splits with everything in place."""
    for name in ("train", "val"):
        (tmp_path / f"{name}.json").write_text(json.dumps(CONTENT), encoding="utf-8")
        for image in CONTENT["images"]:
            path = tmp_path / name / image["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((image["height"], image["width"], 3), 200, dtype=np.uint8))
    return coco_dataset(tmp_path)


def error_of(dataset: CocoDataset | DigitsDataset) -> str:
    with pytest.raises(UserError) as refused:
        open_dataset(dataset)
    message = str(refused.value)
    assert message.isprintable()
    return message


def test_classes_are_the_categories_in_their_order(dataset: CocoDataset) -> None:
    checked = open_dataset(dataset)
    assert checked.classes == ("zebra", "ant", "mole")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(checked.train.annotations))
    # MMDetection numbers the classes in the order of these.
    assert coco.getCatIds(catNms=list(checked.classes)) == [90, 4, 17]


def test_paths_are_absolute(dataset: CocoDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(dataset.root.parent)
    checked = open_dataset(coco_dataset(Path(dataset.root.name)))
    monkeypatch.chdir("/")
    assert checked == open_dataset(dataset)
    assert checked.val.annotations.is_file()
    assert checked.val.images.is_dir()


def test_an_image_may_have_no_boxes(dataset: CocoDataset, tmp_path: Path) -> None:
    content = {**CONTENT, "annotations": CONTENT["annotations"][:1]}
    (tmp_path / "train.json").write_text(json.dumps(content), encoding="utf-8")
    assert open_dataset(dataset).classes == ("zebra", "ant", "mole")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON, so not COCO annotations: "),
        (b"image,x,y\na.png,1,2\n", "not JSON, so not COCO annotations: "),
        (b"\x89PNG\r\n\x1a\n\xff", "not JSON, so not COCO annotations: "),
        (b'{"images": [', "not JSON, so not COCO annotations: "),
        (b"[]", "not COCO annotations: expected a list of records under 'images'"),
        (b"null", "not COCO annotations: expected a list of records under 'images'"),
        (b"{}", "not COCO annotations: expected a list of records under 'images'"),
        (b'{"images": {"7": "a.png"}}', "not COCO annotations: expected a list of records under 'images'"),
        (b'{"images": ["a.png"]}', "not COCO annotations: expected a list of records under 'images'"),
        (b'{"images": []}', "not COCO annotations: expected a list of records under 'annotations'"),
        (b'{"images": [], "annotations": []}', "not COCO annotations: expected a list of records under 'categories'"),
    ],
)
def test_a_file_that_is_not_in_cocos_format_is_named(
    dataset: CocoDataset, tmp_path: Path, split: str, text: bytes, message: str
) -> None:
    path = tmp_path / f"{split}.json"
    path.write_bytes(text)
    assert error_of(dataset).startswith(f"dataset.{split}.annotations: {path}: {message}")


def without(part: str, number: int, field: str) -> Callable[[Content], object]:
    return lambda content: content[part][number].pop(field)


def with_value(part: str, number: int, field: str, value: object) -> Callable[[Content], object]:
    return lambda content: content[part][number].update({field: value})


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("images", 1, "id"), "images[1] has no 'id', so not COCO annotations"),
        (without("images", 0, "file_name"), "images[0] has no 'file_name', so not COCO annotations"),
        (without("images", 0, "width"), "images[0] has no 'width', so not COCO annotations"),
        (without("images", 0, "height"), "images[0] has no 'height', so not COCO annotations"),
        (without("annotations", 1, "id"), "annotations[1] has no 'id', so not COCO annotations"),
        (without("annotations", 1, "image_id"), "annotations[1] has no 'image_id', so not COCO annotations"),
        (without("annotations", 0, "category_id"), "annotations[0] has no 'category_id', so not COCO annotations"),
        (without("annotations", 1, "bbox"), "annotations[1] has no 'bbox', so not COCO annotations"),
        (without("annotations", 1, "area"), "annotations[1] has no 'area', so not COCO annotations"),
        (without("annotations", 1, "iscrowd"), "annotations[1] has no 'iscrowd', so not COCO annotations"),
        (without("categories", 2, "id"), "categories[2] has no 'id', so not COCO annotations"),
        (without("categories", 2, "name"), "categories[2] has no 'name', so not COCO annotations"),
        (with_value("images", 0, "id", [7]), "images[0] has the id [7], so not COCO annotations"),
        (with_value("images", 0, "file_name", 7), "images[0] has the file_name 7, so not COCO annotations"),
        (with_value("annotations", 0, "bbox", [1, 2, 3]), "annotations[0] has the bbox [1, 2, 3], so not COCO"),
        (with_value("annotations", 0, "bbox", [1, 2, 3, None]), "annotations[0] has the bbox [1, 2, 3, None], so not"),
        (with_value("annotations", 0, "bbox", [1, 2, 3, 10**400]), "annotations[0] has the bbox [1, 2, 3, 1000"),
        (with_value("annotations", 1, "area", 10**400), "annotations[1] has the area 1000"),
        (with_value("images", 0, "width", math.nan), "images[0] has the width nan, so not COCO"),
        (with_value("annotations", 0, "bbox", "1 2 3 4"), "annotations[0] has the bbox '1 2 3 4', so not COCO"),
        (with_value("annotations", 0, "image_id", {}), "annotations[0] has the image_id {}, so not COCO annotations"),
        (with_value("annotations", 0, "area", None), "annotations[0] has the area None, so not COCO annotations"),
        (with_value("annotations", 1, "image_id", 5), "annotations[1] has the unknown image_id 5"),
        (with_value("annotations", 1, "image_id", "3"), "annotations[1] has the unknown image_id '3'"),
        (with_value("annotations", 0, "category_id", 1), "annotations[0] has the unknown category_id 1"),
        (with_value("images", 1, "id", 7), "2 images have the id 7; expected all different"),
        (with_value("annotations", 1, "id", 1), "2 annotations have the id 1; expected all different"),
        (with_value("categories", 2, "id", 90), "2 categories have the id 90; expected all different"),
        (with_value("categories", 2, "name", "ant"), "2 categories have the name 'ant'; expected all different"),
        (lambda content: content["categories"].clear(), "has no categories; expected at least one class"),
        (lambda content: content["annotations"].clear(), "has no annotations; expected at least one box"),
    ],
)
def test_a_record_that_cannot_be_trained_on_is_named(
    dataset: CocoDataset, tmp_path: Path, split: str, spoil: Callable[[Content], object], message: str
) -> None:
    content = copy.deepcopy(CONTENT)
    spoil(content)
    path = tmp_path / f"{split}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert error_of(dataset).startswith(f"dataset.{split}.annotations: {path}: {message}")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_file_is_named(dataset: CocoDataset, tmp_path: Path, split: str) -> None:
    path = tmp_path / f"{split}.json"
    path.unlink()
    assert error_of(dataset) == f"dataset.{split}.annotations: {path}: no such file"
    path.mkdir()
    assert error_of(dataset) == f"dataset.{split}.annotations: {path}: cannot be read: Is a directory"


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_folder_is_named(dataset: CocoDataset, tmp_path: Path, split: str) -> None:
    folder = tmp_path / split
    folder.rename(tmp_path / "elsewhere")
    assert error_of(dataset) == f"dataset.{split}.images: {folder}: no such folder"
    folder.write_bytes(b"")
    assert error_of(dataset) == f"dataset.{split}.images: {folder}: no such folder"


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", ["a.png", "night/b.png"])
def test_an_absent_image_is_named(dataset: CocoDataset, tmp_path: Path, split: str, name: str) -> None:
    (tmp_path / split / name).unlink()
    assert error_of(dataset) == (
        f"dataset.{split}.images: {tmp_path / split}: {name} of 2 listed images absent; {split}.json lists them"
    )


def test_absent_images_are_counted(dataset: CocoDataset, tmp_path: Path) -> None:
    (tmp_path / "val" / "a.png").unlink()
    (tmp_path / "val" / "night" / "b.png").unlink()
    (tmp_path / "val" / "night").rmdir()
    message = f"dataset.val.images: {tmp_path / 'val'}: a.png and 1 more of 2 listed images absent; val.json lists them"
    assert error_of(dataset) == message


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["zebra", "ant"], "must have the same classes; only one has mole"),
        (["zebra", "ant", "mole", "newt"], "must have the same classes; only one has newt"),
        (["zebra", "ant", "vole"], "must have the same classes; only one has mole, vole"),
        (["ant", "zebra", "mole"], "zebra, ant, mole"),
    ],
)
def test_the_splits_have_the_same_classes_in_the_same_order(
    dataset: CocoDataset, tmp_path: Path, names: list[str], message: str
) -> None:
    ids = {"zebra": 90, "ant": 4}
    content = {
        **CONTENT,
        "categories": [{"id": ids.get(name, 100 + number), "name": name} for number, name in enumerate(names)],
    }
    (tmp_path / "val.json").write_text(json.dumps(content), encoding="utf-8")
    found = error_of(dataset)
    assert found.startswith(f"dataset.val.annotations: {tmp_path / 'val.json'} ")
    assert str(tmp_path / "train.json") in found
    assert found.endswith(message)


def test_the_ids_of_classes_may_differ_between_splits(dataset: CocoDataset, tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    for record, field in [(r, "category_id") for r in content["annotations"]] + [
        (r, "id") for r in content["categories"]
    ]:
        record[field] += 1000
    (tmp_path / "val.json").write_text(json.dumps(content), encoding="utf-8")
    assert open_dataset(dataset).classes == ("zebra", "ant", "mole")


def test_digits_are_made_on_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMNAS_CACHE", str(tmp_path / "cache"))
    digits = DigitsDataset(kind="digits", classes=3, train_images=5, val_images=2, width=64, height=48)
    checked = open_dataset(digits)
    assert checked.classes == ("0", "1", "2")
    assert len(list(checked.train.images.iterdir())) == 5
    assert len(list(checked.val.images.iterdir())) == 2
    assert checked.train.images.is_relative_to(tmp_path / "cache")
    assert open_dataset(digits) == checked


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SMNAS_CACHE", str(tmp_path / "file" / "cache"))
    message = error_of(DigitsDataset(kind="digits", train_images=1, val_images=1))
    assert message.startswith(f"dataset: the demo data cannot be written below {tmp_path / 'file' / 'cache'}: ")


@pytest.mark.skipif(not BCCD.is_dir(), reason="the shared blood cells are not here")
def test_a_real_data_set_opens() -> None:
    splits = {name: {"annotations": f"instances_{name}.json", "images": "images"} for name in ("train", "val")}
    checked = open_dataset(CocoDataset.model_validate({"root": BCCD, **splits}))
    assert checked.classes == ("RBC", "WBC", "Platelets")
    assert checked.train.images == checked.val.images == BCCD / "images"
