"""The training and the validation split of a data folder."""

import hashlib
import json
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from smnas_optuna.data.annotations import Content
from smnas_optuna.data.cache import cache_folder
from smnas_optuna.data.folder.annotations import annotations_of, divided, problems_of
from smnas_optuna.data.folder.layout import Layout
from smnas_optuna.data.folder.recognition import recognise
from smnas_optuna.data.folder.splitting import read_split, split_validation, write_split
from smnas_optuna.errors import UserError
from smnas_optuna.recipe.settings import FolderDataset

# Part of the names of cached files: increase it with every change to how a validation part is chosen.
_SPLITTER = "split-v1"
_TITLES: Final[dict[Literal["train", "val"], str]] = {"train": "training", "val": "validation"}
_FORMATS = {"yolo": "YOLO", "coco": "COCO", "voc": "Pascal VOC", "bdd": "BDD100K"}


@dataclass(frozen=True)
class FolderSplits:
    """The splits of a data folder, in COCO's format.

    Args:
        layout: What was recognised.
        images: Folder that names of images are relative to.
        annotations: The json file of each split.
        places: Where the images of each split come from.
        validation: The file that lists the validation images; None for the folder's own validation part.
        was_split_off: Whether the validation part was chosen here, and not by the user.
    """

    layout: Layout
    images: Path
    annotations: dict[Literal["train", "val"], Path]
    places: dict[Literal["train", "val"], str]
    validation: Path | None
    was_split_off: bool = False

    def describe(self) -> tuple[str, ...]:
        """Say in three lines what was recognised and why, and what each split has."""
        contents = {name: json.loads(path.read_bytes()) for name, path in self.annotations.items()}
        classes = [category["name"] for category in contents["train"]["categories"]]
        shown = ", ".join(classes[:5]) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")
        test = f"; {self.layout.place('test')} is left for a last test" if "test" in self.layout.parts else ""
        first = (
            f"{self.layout.images}: {_FORMATS[self.layout.format]}, by {self.layout.reason}; "
            f"{'1 class' if len(classes) == 1 else f'{len(classes)} classes'}: {shown}"
        )
        training, validation = (
            f"{title}: {len(contents[name]['images']):,} images with {len(contents[name]['annotations']):,} boxes, "
            f"from {self.places[name]}"
            for name, title in _TITLES.items()
        )
        return first, training, validation + test

    def problems(self) -> tuple[str, ...]:
        """Say what was left out, and other problems, a line for each kind."""
        return tuple(
            f"{what}: {number:,}, such as {examples[0]}"
            for path in self.annotations.values()
            for what, (number, examples) in problems_of(json.loads(path.read_bytes())).items()
        )


def split_folder(dataset: FolderDataset) -> FolderSplits:
    """Return the splits of a data folder; labels are converted, and images compared, unless the cache has the result.

    ``dataset.train_images`` and ``val_images`` are not considered, see :func:`limited`.

    Raises:
        UserError: See :func:`~smnas_optuna.data.folder.recognition.recognise`; or the labels cannot be used, there is
            only one image, or ``dataset.validation`` does not fit the folder.
    """
    layout = recognise(Path(os.path.abspath(dataset.root)), dataset.format)
    if dataset.validation is None and "val" in layout.parts:
        return FolderSplits(
            layout,
            layout.images,
            {"train": annotations_of(layout, ["train"]), "val": annotations_of(layout, ["val"])},
            {"train": layout.place("train"), "val": layout.place("val")},
            None,
        )
    whole = annotations_of(layout, [part for part in layout.parts if part != "test"])
    content = json.loads(whole.read_bytes())
    names = [image["file_name"] for image in content["images"]]
    if len(names) == 1:
        raise UserError(f"{layout.images}: 1 image; expected at least 2, one to train on and one to validate on")
    validation = dataset.validation or _split_off(layout, whole, content)
    chosen = read_split(validation, names)
    train, val = divided(whole, chosen)
    places = " and ".join(layout.place(part) for part in layout.parts if part != "test")
    return FolderSplits(
        layout,
        layout.images,
        {"train": train, "val": val},
        {"train": f"{places}, less these", "val": f"{places}, as {validation} lists"},
        validation,
        was_split_off=dataset.validation is None,
    )


def limited(annotations: Path, most: int | None) -> Path:
    """Return annotations of so many images at most: always the same ones, in an order that says nothing about them.

    Args:
        annotations: COCO json file of a split.
        most: Number of images; None for all.
    """
    names = [image["file_name"] for image in json.loads(annotations.read_bytes())["images"]] if most else []
    if most is None or len(names) <= most:
        return annotations
    chosen = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:most]
    return divided(annotations, chosen)[1]


def _split_off(layout: Layout, whole: Path, content: Content) -> Path:
    """Return the file of a validation part that is split off, which the cache keeps."""
    digest = hashlib.sha256(whole.name.encode()).hexdigest()[:16]
    path = cache_folder() / f"{_SPLITTER}-{digest}.txt"
    if path.is_file():
        return path
    names = {category["id"]: category["name"] for category in content["categories"]}
    classes = defaultdict(set)
    for box in content["annotations"]:
        classes[box["image_id"]].add(names[box["category_id"]])
    images = [image["file_name"] for image in content["images"]]
    chosen = split_validation(
        [layout.images / name for name in images], [frozenset(classes[image["id"]]) for image in content["images"]]
    )
    try:
        write_split(path, layout.images, [images[index] for index in chosen])
    except OSError as error:
        raise UserError(f"dataset: the validation part cannot be written below {cache_folder()}: {error}") from None
    return path
