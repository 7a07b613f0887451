"""Checks data sets before anything is trained on them."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from smnas_optuna.data.annotations import is_number, read_json
from smnas_optuna.data.bdd import bdd_annotations
from smnas_optuna.data.cache import cache_folder
from smnas_optuna.data.folder.splits import FolderSplits, limited, split_folder
from smnas_optuna.data.voc import voc_annotations
from smnas_optuna.errors import UserError
from smnas_optuna.recipe.settings import BddDataset, Dataset, DigitsDataset, FolderDataset, VocDataset

SplitName = Literal["train", "val"]
SPLITS: Final[tuple[SplitName, ...]] = ("train", "val")

_ID = (int, str)
_NUMBER = (int, float)
# The fields that MMDetection's CocoDataset and pycocotools read, and the types that they accept.
FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
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
# Fields whose values have to be unique within a list.
UNIQUE_FIELDS = (("images", "id"), ("annotations", "id"), ("categories", "id"), ("categories", "name"))


Scoring = Literal["coco", "voc_11points", "voc_area"]


@dataclass(frozen=True)
class DatasetSplit:
    """An existing COCO JSON file, and the existing folder that its file names are relative to."""

    annotations: Path
    images: Path


@dataclass(frozen=True)
class CheckedDataset:
    """A data set that can be trained on.

    Args:
        train: Split to train on.
        val: Split to validate on.
        classes: Class names, in the order of the categories of the training split's JSON file.
        scoring: Definition of the average precision ``map_50``: COCO's, or Pascal VOC's, at 11 recalls (VOC 2007) or as
            the area below the curve (since VOC 2010).
        source: The recipe's section that the data set was opened from, with an absolute ``root``.
        has_both_orientations: Whether some training images are higher than wide and others are not.
        train_images: Number of training images with objects; 0 if unknown.
    """

    train: DatasetSplit
    val: DatasetSplit
    classes: tuple[str, ...]
    scoring: Scoring = "coco"
    source: Dataset | None = None
    has_both_orientations: bool = False
    train_images: int = 0


@dataclass(frozen=True)
class LocatedSplit:
    """A split that has not been checked yet, and the names of its parts in error messages.

    Args:
        split: The annotations in COCO's format, and the folder of images.
        annotations: Name of the annotations: the recipe's key and its value.
        images: Name of the folder of images: the recipe's key and its value.
        lists: Names of the files or image sets that list the images, separated by commas.
    """

    split: DatasetSplit
    annotations: str
    images: str
    lists: str


def open_dataset(dataset: Dataset, folder: FolderSplits | None = None) -> CheckedDataset:
    """Check a recipe's data set; digits are generated, and other formats converted, unless the cache has them already.

    Args:
        dataset: The data set.
        folder: The splits of a data folder if they are known; None to find them.

    Raises:
        UserError: The cache cannot be written; a file, a folder or a listed image is missing; a file is not in its
            format, or has no class or no box; or the splits do not have the same classes in the same order.
    """
    if isinstance(dataset, FolderDataset):
        folder = folder or split_folder(dataset)
    splits = {name: locate_split(dataset, name, folder) for name in SPLITS}
    classes, orientations, with_objects = {}, {}, {}
    for name, located in splits.items():
        content = read_annotations(located)
        classes[name] = check_annotations(located, content)
        check_images(located, [image["file_name"] for image in content["images"]])
        with_objects[name] = len({box["image_id"] for box in content["annotations"]})
        orientations[name] = {image["height"] > image["width"] for image in content["images"]}
    check_classes(splits, classes)
    train, val = (
        DatasetSplit(splits[name].split.annotations.resolve(), splits[name].split.images.resolve()) for name in SPLITS
    )
    if not isinstance(dataset, DigitsDataset):
        # Symbolic links are not resolved: names of Pascal VOC's folders contain the year, which decides the scoring.
        dataset = dataset.model_copy(update={"root": Path(os.path.abspath(dataset.root))})
    if isinstance(dataset, FolderDataset) and dataset.validation is not None:
        dataset = dataset.model_copy(update={"validation": Path(os.path.abspath(dataset.validation))})
    return CheckedDataset(
        train,
        val,
        classes["train"],
        _scoring(dataset),
        dataset,
        has_both_orientations=len(orientations["train"]) > 1,
        train_images=with_objects["train"],
    )


def on_this_machine(dataset: CheckedDataset) -> CheckedDataset:
    """Return a data set for use on this machine; it is opened again if this machine's cache lacks its annotations.

    Raises:
        UserError: The data set cannot be opened on this machine.
    """
    present = all(split.annotations.is_file() for split in (dataset.train, dataset.val))
    return dataset if present or dataset.source is None else open_dataset(dataset.source)


def locate_split(dataset: Dataset, name: SplitName, folder: FolderSplits | None = None) -> LocatedSplit:
    """Return a split's files; digits are generated, and other formats converted, unless the cache has them already.

    Args:
        dataset: The data set.
        name: Name of the split.
        folder: The splits of a data folder if they are known; None to find them.

    Raises:
        UserError: The digits cannot be generated, or the annotations cannot be converted.
    """
    key = f"dataset.{name}"
    if isinstance(dataset, VocDataset):
        image_sets = dataset.train if name == "train" else dataset.val
        root = Path(os.path.abspath(dataset.root))
        split = DatasetSplit(voc_annotations(key, root, image_sets, dataset.classes), root)
        sets = ", ".join(image_sets)
        return LocatedSplit(split, f"{key}: {sets} of {root}", f"{key}: {root}", sets)
    if isinstance(dataset, DigitsDataset):
        from smnas_optuna.data.digits import make_digits  # loads scikit-learn, which no other data set needs

        try:
            root = make_digits(
                dataset.classes, dataset.train_images, dataset.val_images, width=dataset.width, height=dataset.height
            )
        except OSError as error:
            raise UserError(f"dataset: the demo data cannot be written below {cache_folder()}: {error}") from None
        split = DatasetSplit(root / f"{name}.json", root / name)
    elif isinstance(dataset, FolderDataset):
        folder = folder or split_folder(dataset)
        most = dataset.train_images if name == "train" else dataset.val_images
        split = DatasetSplit(limited(folder.annotations[name], most), folder.images)
        place = f"dataset: {folder.places[name]}"
        return LocatedSplit(split, place, place, folder.places[name])
    else:
        section = dataset.train if name == "train" else dataset.val
        split = DatasetSplit(dataset.root / section.annotations, dataset.root / section.images)
    annotations, images = f"{key}.annotations: {split.annotations}", f"{key}.images: {split.images}"
    lists = split.annotations.name
    if isinstance(dataset, BddDataset):
        split = DatasetSplit(bdd_annotations(annotations, Path(os.path.abspath(split.annotations))), split.images)
    return LocatedSplit(split, annotations, images, lists)


def read_annotations(located: LocatedSplit) -> Any:
    """Return the content of a split's JSON file; raises UserError."""
    return read_json(located.annotations, located.split.annotations, "COCO annotations")


def check_annotations(located: LocatedSplit, content: Any) -> tuple[str, ...]:
    """Check that a split's annotations can be trained on, and return its classes; raises UserError."""
    place = located.annotations
    records = {part: _records(place, content, part) for part in FIELDS}
    images, boxes, categories = records.values()
    if not categories:
        raise UserError(f"{place}: has no categories; expected at least one class")
    if not boxes:
        raise UserError(f"{place}: has no annotations; expected at least one box")
    if any(box["id"] < 1 for box in boxes):
        # pycocotools stores for each detection the id of the box that it matches; 0 means none.
        raise UserError(f"{place}: an annotation has the id {min(box['id'] for box in boxes)}; expected ids from 1")
    for part, field in UNIQUE_FIELDS:
        values = Counter(record[field] for record in records[part])
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
    return tuple(category["name"] for category in categories)


def check_images(located: LocatedSplit, names: Sequence[str]) -> None:
    """Raise UserError if a split's folder of images, or an image in it, is absent."""
    folder = located.split.images
    if not folder.is_dir():
        raise UserError(f"{located.images}: no such folder")
    absent = absent_images(folder, names)
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        verb = "list" if "," in located.lists else "lists"
        raise UserError(
            f"{located.images}: {absent[0]}{more} of {len(names)} listed images absent; {located.lists} {verb} them"
        )


def absent_images(folder: Path, names: Sequence[str]) -> list[str]:
    """Return those file names, which may contain subfolders, that do not exist in a folder."""
    # One listing per folder is faster than one look-up per image: COCO has 118,000, maybe on a network file system.
    present: dict[str, set[str]] = {}
    absent = []
    for name in names:
        parent, own = os.path.split(name)
        if parent not in present:
            present[parent] = set(os.listdir(folder / parent)) if (folder / parent).is_dir() else set()
        if own not in present[parent]:
            absent.append(name)
    return absent


def check_classes(splits: Mapping[SplitName, LocatedSplit], classes: Mapping[SplitName, tuple[str, ...]]) -> None:
    """Raise UserError if the splits do not have the same classes in the same order."""
    train, val = (splits[name].split.annotations for name in SPLITS)
    if set(classes["train"]) != set(classes["val"]):
        different = sorted(set(classes["train"]) ^ set(classes["val"]))
        raise UserError(
            f"dataset.val.annotations: {val} and {train} must have the same classes; only one has "
            f"{', '.join(different)}"
        )
    if classes["train"] != classes["val"]:
        # MMDetection numbers the classes of each file in the order of that file.
        raise UserError(
            f"dataset.val.annotations: {val} must have its categories in the order of {train}: "
            f"{', '.join(classes['train'])}"
        )


def _scoring(dataset: Dataset) -> Scoring:
    if not isinstance(dataset, VocDataset):
        return "coco"
    folders = [Path(os.path.abspath(dataset.root / name)).parts for name in dataset.val]
    return "voc_11points" if all("VOC2007" in parts for parts in folders) else "voc_area"


def _records(place: str, content: Any, part: str) -> list[dict[str, Any]]:
    records = content.get(part) if isinstance(content, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{place}: not COCO annotations: expected a list of records under {part!r}")
    for number, record in enumerate(records):
        fault = find_fault(record, part)
        if fault is not None:
            raise UserError(f"{place}: {part}[{number}] has {fault}, so not COCO annotations")
    return records


def find_fault(record: Mapping[str, Any], part: str) -> str | None:
    """Return what is wrong with a record of ``images``, ``annotations`` or ``categories``; None if it is valid."""
    for field, kind in FIELDS[part].items():
        if field not in record:
            return f"no {field!r}"
        value = record[field]
        if field == "bbox":
            is_valid = isinstance(value, list) and len(value) == 4 and all(map(is_number, value))
        else:
            is_valid = is_number(value) if kind == _NUMBER else isinstance(value, kind)
        if not is_valid:
            return f"the {field} {value!r}"
    return None
