"""Data sets, checked before anything is trained."""

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smnas_optuna.errors import UserError
from smnas_optuna.evaluation.digits import cache_folder, make_digits
from smnas_optuna.recipe import CocoDataset, DigitsDataset

_ID = (int, str)
_NUMBER = (int, float)
# What MMDetection's data set and pycocotools' scores read, and the types with which they can.
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "images": {"id": _ID, "file_name": str, "width": _NUMBER, "height": _NUMBER},
    "annotations": {
        "id": int,
        "image_id": _ID,
        "category_id": _ID,
        "bbox": list,
        "area": _NUMBER,
        "iscrowd": _NUMBER,
    },
    "categories": {"id": _ID, "name": str},
}


@dataclass(frozen=True)
class DatasetSplit:
    """A COCO json file and the folder that its file names are relative to, both existing."""

    annotations: Path
    images: Path


@dataclass(frozen=True)
class CheckedDataset:
    """A data set that can be trained on: classes in the order of the training json's categories."""

    train: DatasetSplit
    val: DatasetSplit
    classes: tuple[str, ...]


def open_dataset(dataset: CocoDataset | DigitsDataset) -> CheckedDataset:
    """Check a recipe's data set; the digits are made first where they are not there yet.

    Raises:
        UserError: The digits cannot be written, a file or folder is missing, a file is not in COCO's format, it has no
            class or no box, an image that it lists is absent, or the two splits do not have the same classes in the
            same order.
    """
    if isinstance(dataset, DigitsDataset):
        try:
            root = make_digits(
                dataset.classes, dataset.train_images, dataset.val_images, width=dataset.width, height=dataset.height
            )
        except OSError as error:
            raise UserError(f"dataset: the demo data cannot be written below {cache_folder()}: {error}") from None
        parts = {name: DatasetSplit(root / f"{name}.json", root / name) for name in ("train", "val")}
    else:
        parts = {
            name: DatasetSplit(dataset.root / split.annotations, dataset.root / split.images)
            for name, split in (("train", dataset.train), ("val", dataset.val))
        }
    classes = {name: _check(f"dataset.{name}", split) for name, split in parts.items()}
    if set(classes["train"]) != set(classes["val"]):
        different = sorted(set(classes["train"]) ^ set(classes["val"]))
        raise UserError(
            f"dataset.val.annotations: {parts['val'].annotations} and {parts['train'].annotations} must have the same "
            f"classes; only one has {', '.join(different)}"
        )
    if classes["train"] != classes["val"]:
        # MMDetection counts the classes of each file in that file's order.
        raise UserError(
            f"dataset.val.annotations: {parts['val'].annotations} must have its categories in the order of "
            f"{parts['train'].annotations}: {', '.join(classes['train'])}"
        )
    absolute = {name: DatasetSplit(part.annotations.resolve(), part.images.resolve()) for name, part in parts.items()}
    return CheckedDataset(absolute["train"], absolute["val"], classes["train"])


def _check(key: str, split: DatasetSplit) -> tuple[str, ...]:
    """Check one split and return its classes."""
    place = f"{key}.annotations: {split.annotations}"
    try:
        content = json.loads(split.annotations.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{place}: no such file") from None
    except OSError as error:
        raise UserError(f"{place}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{place}: not JSON, so not COCO annotations: {error}") from None
    images, boxes, categories = (_records(place, content, part) for part in _FIELDS)
    if not categories:
        raise UserError(f"{place}: has no categories; expected at least one class")
    if not boxes:
        raise UserError(f"{place}: has no annotations; expected at least one box")
    if any(box["id"] < 1 for box in boxes):
        # pycocotools notes by id which box a detection matches, and 0 there means none.
        raise UserError(f"{place}: an annotation has the id {min(box['id'] for box in boxes)}; expected ids from 1")
    for part, records, field in (
        ("images", images, "id"),
        ("annotations", boxes, "id"),
        ("categories", categories, "id"),
        ("categories", categories, "name"),
    ):
        values = Counter(record[field] for record in records)
        repeated = next((value for value, count in values.items() if count > 1), None)
        if repeated is not None:
            raise UserError(f"{place}: {values[repeated]} {part} have the {field} {repeated!r}; expected all different")
    for field, known in (
        ("image_id", {image["id"] for image in images}),
        ("category_id", {category["id"] for category in categories}),
    ):
        for number, box in enumerate(boxes):
            if box[field] not in known:
                raise UserError(f"{place}: annotations[{number}] has the unknown {field} {box[field]!r}")
    _check_images(key, split, [image["file_name"] for image in images])
    return tuple(category["name"] for category in categories)


def _records(place: str, content: Any, part: str) -> list[dict[str, Any]]:
    records = content.get(part) if isinstance(content, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{place}: not COCO annotations: expected a list of records under {part!r}")
    for number, record in enumerate(records):
        for field, kind in _FIELDS[part].items():
            if field not in record:
                raise UserError(f"{place}: {part}[{number}] has no {field!r}, so not COCO annotations")
            value = record[field]
            if not (_is_box(value) if field == "bbox" else isinstance(value, kind)):
                raise UserError(f"{place}: {part}[{number}] has the {field} {value!r}, so not COCO annotations")
    return records


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(isinstance(number, _NUMBER) for number in value)


def _check_images(key: str, split: DatasetSplit, names: list[str]) -> None:
    if not split.images.is_dir():
        raise UserError(f"{key}.images: {split.images}: no such folder")
    # One listing per folder, not a look-up per image: COCO has 118,000 and may lie on a network file system.
    present: dict[Path, set[str]] = {}
    absent = []
    for name in names:
        path = split.images / name
        if path.parent not in present:
            present[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
        if path.name not in present[path.parent]:
            absent.append(name)
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise UserError(
            f"{key}.images: {split.images}: {absent[0]}{more} of {len(names)} listed images absent; "
            f"{split.annotations.name} lists them"
        )
