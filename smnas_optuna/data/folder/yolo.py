"""YOLO's labels: a text file for each image, with a line for each object.

A line has the number of the class and the box's centre, width and height as shares of the image's, or the corners of a
polygon. Classes and parts come from Ultralytics' ``data.yaml``, or else from a list of classes such as
``classes.txt`` and from the names of folders. As in Ultralytics, an image without labels shows only background, and
one with labels that cannot be used is left out.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, ClassVar

import yaml

from smnas_optuna.data.folder.files import IMAGE_SUFFIXES, FolderFiles
from smnas_optuna.data.folder.layout import (
    PARTS,
    Box,
    FormatName,
    Labels,
    PartName,
    box_around,
    folders_of,
    grouped_by_part,
)
from smnas_optuna.errors import UserError

# Lists of classes, one per line, that LabelImg, Label Studio, CVAT and Roboflow write.
_CLASS_LISTS = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt", "labels.txt")
_PARTS_IN_YAML: dict[str, PartName] = {"train": "train", "val": "val", "validation": "val", "test": "test"}
# How far beyond the image a centre or a corner may lie, as a share of its size: as in Ultralytics.
_TOLERANCE = 0.01
_BOX_NUMBERS = 4
_FEWEST_POLYGON_NUMBERS = 6

_UNREADABLE = "images with labels that cannot be read"
_OUT_OF_RANGE = "images with labels out of range, 0 to 1"


@dataclass(frozen=True)
class YoloLayout:
    """A folder with YOLO's labels; see :class:`~smnas_optuna.data.folder.layout.Layout`.

    Args:
        images: Folder that names of images are relative to.
        reason: By what it was recognised.
        classes: Class names in the order of their numbers.
        images_of: Paths of the images of each part.
        places: Where the images of each part come from.
        lists: Files that list the images of each part.
        has_keypoints: Whether keypoints follow the box in each line.
    """

    images: Path
    reason: str
    classes: tuple[str, ...]
    images_of: Mapping[PartName, tuple[Path, ...]]
    places: Mapping[PartName, str]
    lists: Mapping[PartName, tuple[Path, ...]]
    has_keypoints: bool = False

    format: ClassVar[FormatName] = "yolo"

    @property
    def parts(self) -> tuple[PartName, ...]:
        """The parts that the folder has."""
        return tuple(self.images_of)

    def place(self, part: PartName) -> str:
        """Say where the images of a part come from."""
        return self.places[part]

    def sources(self, part: PartName) -> Sequence[Path]:
        """Return the images of a part, and the files with their labels."""
        labels = (label_of(image) for image in self.images_of[part])
        return [*self.lists[part], *self.images_of[part], *(label for label in labels if label is not None)]

    def labels(self, part: PartName) -> Labels:
        """Read the labels of a part; raises UserError."""
        found = Labels(are_shares=True)
        for image in self.images_of[part]:
            label = label_of(image)
            try:
                found.boxes[image] = [] if label is None else self._read(label)
            except _UnusableError as error:
                found.leave_out(error.what, f"{label}:{error.line}: {error}")
        return found

    def _read(self, label: Path) -> list[Box]:
        try:
            lines = label.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise _UnusableError(_UNREADABLE, 1, str(error)) from None
        boxes = []
        for number, line in enumerate(lines, start=1):
            fields = line.split()
            if not fields:
                continue
            try:
                first, *numbers = map(float, fields)
                index = int(first)
            except (ValueError, OverflowError):
                raise _UnusableError(_UNREADABLE, number, f"found {line.strip()!r}, expected numbers") from None
            if index != first or not 0 <= index < len(self.classes):
                raise UserError(
                    f"{label}:{number}: found the class {fields[0]}; {self.reason} lists {len(self.classes)} classes, "
                    "numbered from 0"
                )
            boxes.append(Box(self.classes[index], *self._edges(number, numbers)))
        return boxes

    def _edges(self, line: int, numbers: list[float]) -> tuple[float, float, float, float]:
        """Return left, top, width and height of the box of a line, as shares."""
        if self.has_keypoints:
            numbers = numbers[:_BOX_NUMBERS]
        if any(not -_TOLERANCE <= number <= 1 + _TOLERANCE for number in numbers):
            raise _UnusableError(_OUT_OF_RANGE, line, f"found {', '.join(f'{number:g}' for number in numbers[:4])}")
        if len(numbers) == _BOX_NUMBERS:
            centre, middle, width, height = numbers
            return centre - width / 2, middle - height / 2, width, height
        if len(numbers) < _FEWEST_POLYGON_NUMBERS or len(numbers) % 2:
            raise _UnusableError(
                _UNREADABLE, line, f"{len(numbers) + 1} numbers; expected a class and 4 numbers, or a polygon"
            )
        return box_around(numbers)


class _UnusableError(Exception):
    """The labels of an image cannot be used."""

    def __init__(self, what: str, line: int, text: str) -> None:
        super().__init__(text)
        self.what = what
        self.line = line


def find_yolo(files: FolderFiles) -> YoloLayout | None:
    """Return the layout of a folder with YOLO's labels; None if it has none.

    Raises:
        UserError: There are labels but nothing says what their classes are, or ``data.yaml`` cannot be used.
    """
    descriptions = [
        files.root / name
        for name in files.with_suffix(".yaml", ".yml")
        if "/" not in name and is_data_yaml(files.root / name)
    ]
    if len(descriptions) > 1:
        named = [path for path in descriptions if path.stem in ("data", "dataset")]
        if len(named) != 1:
            names = ", ".join(path.name for path in descriptions)
            raise UserError(
                f"{files.root}: {names} all describe data; expected the path of one of them, not the folder"
            )
        descriptions = named
    if descriptions:
        return read_data_yaml(descriptions[0])
    labelled = [label for name in files.images if (label := label_of(files.root / name)) is not None]
    if not any(map(_has_boxes, labelled)):
        return None
    lists = [name for name in files.names if PurePath(name).name in _CLASS_LISTS]
    if not lists:
        raise UserError(
            f"{files.root}: {len(labelled):,} images have YOLO's labels, such as {labelled[0]}, and nothing lists the "
            "classes; expected data.yaml, or classes.txt with one class per line"
        )
    classes = _read_class_list(files.root / lists[0])
    groups = grouped_by_part(files.images)
    return YoloLayout(
        images=files.root,
        reason=lists[0],
        classes=classes,
        images_of={part: tuple(files.root / name for name in names) for part, names in groups.items()},
        places={part: folders_of(names) for part, names in groups.items()},
        lists=dict.fromkeys(groups, (files.root / lists[0],)),
    )


def is_data_yaml(path: Path) -> bool:
    """Return whether a file has the keys of Ultralytics' ``data.yaml``: class names and a training part."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError):
        return False
    return isinstance(content, dict) and "train" in content and ("names" in content or "nc" in content)


def read_data_yaml(path: Path) -> YoloLayout:
    """Return the layout that Ultralytics' ``data.yaml`` describes.

    Raises:
        UserError: A part points nowhere or to the network, or the class names cannot be used.
    """
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    classes = _classes_of(path, content)
    images_of: dict[PartName, tuple[Path, ...]] = {}
    lists: dict[PartName, tuple[Path, ...]] = {}
    places: dict[PartName, str] = {}
    for key, part in _PARTS_IN_YAML.items():
        entries = content.get(key)
        if not entries:
            continue
        try:
            found = [_locate(path, content.get("path"), key, entry) for entry in _listed(entries)]
        except UserError:
            if part == "test":  # not needed, and often not part of an export
                continue
            raise
        images_of[part] = tuple(dict.fromkeys(image for each in found for image in _images_at(each)))
        lists[part] = (path, *(each for each in found if each.is_file()))
        places[part] = ", ".join(_listed(entries))
        if not images_of[part] and part != "test":
            raise UserError(f"{path}: {key}: no image in {found[0]}")
    root = Path(os.path.commonpath([os.path.abspath(path.parent), *(image.parent for image in images_of["train"])]))
    return YoloLayout(
        images=root,
        reason=path.name,
        classes=classes,
        images_of={part: images_of[part] for part in PARTS if part in images_of},
        places=places,
        lists=lists,
        has_keypoints="kpt_shape" in content,
    )


def label_of(image: Path) -> Path | None:
    """Return the file with the labels of an image; None if there is none.

    It is where Ultralytics looks, in the folder ``labels`` beside the last folder ``images``, or beside the image.
    """
    parts = list(image.parts)
    folders = [index for index, name in enumerate(parts[:-1]) if name == "images"]
    if folders:
        parts[folders[-1]] = "labels"
        label = Path(*parts).with_suffix(".txt")
        if label.is_file():
            return label
    label = image.with_suffix(".txt")
    return label if label.is_file() else None


def _classes_of(path: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    names = content.get("names")
    if names is None:
        number = content["nc"]
        if not isinstance(number, int) or number < 1:
            raise UserError(f"{path}: nc: found {number!r}, expected the number of classes")
        names = [f"class {index}" for index in range(number)]
    if isinstance(names, dict):
        missing = [index for index in range(len(names)) if index not in names]
        if missing:
            raise UserError(f"{path}: names: class {missing[0]} is missing; expected numbers from 0 on")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path}: names: found {names!r}, expected a list of class names")
    return _distinct(path, [str(name).strip() for name in names])


def _read_class_list(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"{path}: lists no class; expected one per line")
    return _distinct(path, names)


def _distinct(path: Path, names: list[str]) -> tuple[str, ...]:
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UserError(f"{path}: the class {repeated!r} is listed more than once")
    return tuple(names)


def _has_boxes(label: Path) -> bool:
    """Return whether a text file beside an image begins with a box, and not with words about the image."""
    try:
        with label.open(encoding="utf-8-sig") as lines:
            numbers = [float(field) for field in next(lines, "").split()]
    except (OSError, ValueError):
        return False
    return len(numbers) > _BOX_NUMBERS


def _listed(entries: Any) -> list[str]:
    return [str(entry) for entry in (entries if isinstance(entries, list) else [entries])]


def _locate(path: Path, base: Any, key: str, entry: str) -> Path:
    """Return the folder of images, or the list, that an entry of ``data.yaml`` names.

    Exports are moved: Roboflow's begin with ``../``, and others name the folders of another machine. So the end of the
    path is also looked for beside ``data.yaml``.
    """
    if re.match(r"\w+://", entry):
        raise UserError(f"{path}: {key}: {entry} is on the network; expected a folder of images on this machine")
    beside = path.parent
    bases = [beside / str(base), Path(str(base))] if base else []
    tail = [name for name in PurePath(entry.replace("\\", "/")).parts if name not in ("..", ".", "/")]
    ends = [beside / PurePath(*tail[start:]) for start in range(len(tail))]
    tried = [each / entry for each in (*bases, beside)]
    for candidate in (*tried, *ends):
        if candidate.is_dir() or (candidate.is_file() and candidate.suffix.lower() == ".txt"):
            return Path(os.path.normpath(os.path.abspath(candidate)))
    raise UserError(f"{path}: {key}: no folder or list {os.path.normpath(tried[0])}; expected one with images")


def _images_at(place: Path) -> list[Path]:
    """Return the images in a folder, or in a list of images, which may be relative to it."""
    if place.is_dir():
        return [place / name for name in FolderFiles.below(place).images]
    try:
        lines = [line.strip() for line in place.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{place}: cannot be read: {error}") from None
    images: list[Path] = []
    absent: list[Path] = []
    for line in filter(None, lines):
        image = Path(os.path.normpath(place.parent / line))
        (images if image.is_file() and image.suffix.lower() in IMAGE_SUFFIXES else absent).append(image)
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise UserError(f"{place}: lists {absent[0]}{more}; no such image")
    return images
