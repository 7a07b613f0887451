"""What a format's reader finds in a data folder: parts, classes, and images with boxes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Final, Literal, Protocol

from smnas_optuna.data.folder.files import FolderFiles
from smnas_optuna.errors import UserError

FormatName = Literal["yolo", "coco", "voc", "bdd"]
PartName = Literal["train", "val", "test"]
PARTS: Final[tuple[PartName, ...]] = ("train", "val", "test")

# Such as val, valid, validation, testing, train2017, images_train, train-images.
_PART = re.compile(r"(?:^|[-_. ])(train|val|test)(?:ing|id|idation)?(?:20\d\d)?(?:[-_. ]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Box:
    """A labelled object.

    Args:
        name: Its class.
        left: Left edge, in pixels or as a share of the image's width, see :class:`Labels`.
        top: Top edge, in pixels or as a share of the image's height.
        width: Width, in the unit of ``left``.
        height: Height, in the unit of ``top``.
        is_crowd: Whether it is not scored: a crowd, or an object that VOC calls difficult.
        area: Area of its mask in square pixels; None for that of the box.
    """

    name: str
    left: float
    top: float
    width: float
    height: float
    is_crowd: bool = False
    area: float | None = None


class Labels:
    """The labels of a part of a data folder, which a format's reader fills.

    ``boxes`` are the boxes of each image, by its path, none for an image that shows only background; and ``sizes`` the
    images' widths and heights in pixels, as far as the labels say them. ``left_out`` are images that cannot be used,
    and ``notes`` other problems: where each was found, by what is wrong.

    Args:
        are_shares: Whether boxes are given as shares of the image's width and height, instead of pixels.
    """

    def __init__(self, *, are_shares: bool = False) -> None:
        self.are_shares = are_shares
        self.boxes: dict[Path, list[Box]] = {}
        self.sizes: dict[Path, tuple[float, float]] = {}
        self.left_out: dict[str, list[str]] = {}
        self.notes: dict[str, list[str]] = {}

    def leave_out(self, what: str, where: str) -> None:
        """Record an image that cannot be used."""
        self.left_out.setdefault(what, []).append(where)

    def note(self, what: str, where: str) -> None:
        """Record a problem that leaves out no image."""
        self.notes.setdefault(what, []).append(where)


class Layout(Protocol):
    """A data folder in a known format."""

    @property
    def format(self) -> FormatName:
        """The format of the labels."""

    @property
    def reason(self) -> str:
        """By what the format was recognised, such as ``data.yaml``."""

    @property
    def images(self) -> Path:
        """The folder that names of images are relative to."""

    @property
    def parts(self) -> tuple[PartName, ...]:
        """The parts that the folder has; a folder that is not divided is all ``train``."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of their labels."""

    def place(self, part: PartName) -> str:
        """Say where the images of a part come from."""

    def sources(self, part: PartName) -> Sequence[Path]:
        """Return the files that decide what :meth:`labels` returns: labels, lists and images."""

    def labels(self, part: PartName) -> Labels:
        """Read the labels of a part.

        Raises:
            UserError: A label has a class that the folder does not list, or a file cannot be read.
        """


def box_around(polygon: Sequence[float]) -> tuple[float, float, float, float]:
    """Return left, top, width and height of the box around a polygon, given as ``x, y, x, y`` and so on."""
    left, top = min(polygon[::2]), min(polygon[1::2])
    return left, top, max(polygon[::2]) - left, max(polygon[1::2]) - top


def part_of(path: str | PurePath) -> PartName | None:
    """Return the part that a path is named after; None if none of its folders, nor the file, is named after a part.

    Args:
        path: Path relative to the data folder.
    """
    for name in reversed(PurePath(path).parts):
        found = _PART.search(PurePath(name).stem if name == PurePath(path).name else name)
        if found:
            part = found[1].lower()
            return next(each for each in PARTS if each == part)
    return None


def grouped_by_part(paths: Sequence[str]) -> dict[PartName, list[str]]:
    """Return paths by the part that their folders are named after, in the order of ``PARTS``.

    All are ``train`` if none are, since then the names of the folders mean something else.
    """
    groups: dict[PartName, list[str]] = {part: [] for part in PARTS}
    for path in paths:
        groups[part_of(PurePath(path).parent) or "train"].append(path)
    if not groups["train"]:
        return {"train": list(paths)}
    return {part: group for part, group in groups.items() if group}


def file_of_each_part(root: Path, names: Sequence[str]) -> dict[PartName, str]:
    """Return the json file of each part, by what the files and their folders are named after.

    Args:
        root: The data folder, for error messages.
        names: The json files, relative to it. A single one describes the whole folder, whatever its name.

    Raises:
        UserError: Several files are for the same part.
    """
    if len(names) == 1:
        return {"train": names[0]}
    found: dict[PartName, str] = {}
    for name in names:
        part = part_of(name) or "train"
        if part in found:
            raise UserError(
                f"{root}: {found[part]} and {name} are both for {part}; expected one json file for each part, named "
                "after it"
            )
        found[part] = name
    if found and "train" not in found:
        raise UserError(f"{root}: found {', '.join(names)}; expected a json file for training, such as train.json")
    return {part: found[part] for part in PARTS if part in found}


def nearest(path: str, candidates: Sequence[str]) -> str | None:
    """Return the candidate in the same part as a path, and the nearest to it; None if there is no candidate.

    Args:
        path: Path relative to the data folder.
        candidates: Paths relative to the data folder.
    """
    if len(candidates) <= 1:
        return next(iter(candidates), None)
    own = PurePath(path).parent.parts

    def closeness(candidate: str) -> tuple[bool, int]:
        other = PurePath(candidate).parent.parts
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(own, other, strict=False)))
        return part_of(PurePath(candidate).parent) == part_of(path), shared

    return max(candidates, key=closeness)


def folders_of(paths: Sequence[str]) -> str:
    """Name the folders that files are in, two at most."""
    folders = list(dict.fromkeys(PurePath(path).parent.as_posix() for path in paths))
    shown = ", ".join("the folder itself" if each == "." else each for each in folders[:2])
    return shown if len(folders) <= 2 else f"{shown} and {len(folders) - 2} more folders"


@dataclass(frozen=True)
class LabelFiles:
    """What layouts with files of labels for each part have in common.

    Args:
        files: The folder's files.
        annotations: The files of each part.
    """

    files: FolderFiles
    annotations: Mapping[PartName, object]

    @property
    def images(self) -> Path:
        """The folder itself."""
        return self.files.root

    @property
    def parts(self) -> tuple[PartName, ...]:
        """The parts that the folder has."""
        return tuple(self.annotations)
