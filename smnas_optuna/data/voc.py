"""Converts annotations in Pascal VOC's XML format, which LabelImg, CVAT and others also write, to COCO's format.

Coordinates are converted as MMDetection does it: whole pixels, counted from 0 instead of 1; a box ends at its last
pixel.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from smnas_optuna.data.annotations import Content, convert
from smnas_optuna.errors import UserError

# Part of the names of cached files: increase it with every change to what is read, so that old files are not used.
_READER = "voc-v1"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _ListedImage:
    """An image of an image set: its XML file, and the name of its picture relative to the root."""

    annotation: Path
    picture: str


def voc_annotations(place: str, root: Path, image_sets: Sequence[str], classes: Sequence[str]) -> Path:
    """Convert image sets, and return the path of the COCO JSON file; its file names are relative to the root.

    Args:
        place: Key at the beginning of error messages.
        root: Folder that contains the image sets.
        image_sets: Names of the image sets, see :class:`~smnas_optuna.recipe.settings.VocDataset`.
        classes: Class names, in the order of their labels.

    Raises:
        UserError: An image set or an XML file is missing or cannot be read, an image is in two sets, or an object has
            no box or a class that is not in ``classes``.
    """
    listed = [image for image_set in image_sets for image in _list_images(place, root, image_set)]
    seen: set[str] = set()
    for image in listed:
        if image.picture in seen:
            raise UserError(f"{place}: {image.picture} is in {', '.join(image_sets)} twice; expected each image once")
        seen.add(image.picture)
    arguments = [*classes, "", *(image.picture for image in listed)]
    sources = [image.annotation for image in listed]
    try:
        return convert(_READER, arguments, sources, lambda: _read(place, root, listed, classes))
    except FileNotFoundError as error:
        absent = sum(not source.exists() for source in sources)
        more = f" and {absent - 1} more" if absent > 1 else ""
        raise UserError(
            f"{place}: {error.filename}{more} of {len(sources)} annotations absent; {', '.join(image_sets)} lists them"
        ) from None


def _list_images(place: str, root: Path, image_set: str) -> list[_ListedImage]:
    folder, _, name = image_set.rpartition("/")
    annotations, pictures = os.path.join(folder, "Annotations"), os.path.join(folder, "JPEGImages")
    list_file = root / folder / "ImageSets" / "Main" / f"{name}.txt"
    try:
        lines = list_file.read_text(encoding="utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    except (FileNotFoundError, NotADirectoryError):
        annotations = pictures = image_set
        names = sorted(path.stem for path in (root / image_set).glob("*.xml"))
        if not names:
            raise UserError(
                f"{place}: {image_set!r}: no file {list_file}; expected an image set such as VOC2007/trainval, "
                "or a folder of XML files, below dataset.root"
            ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{place}: {list_file}: cannot be read: {error}") from None
    if not names:
        raise UserError(f"{place}: {list_file}: lists no image")
    pictures_of: dict[str, dict[str, str]] = {}
    listed = []
    for name in names:
        annotation = root / annotations / f"{name}.xml"
        stem = os.path.join(pictures, name)
        parent = os.path.dirname(stem)
        if parent not in pictures_of:
            pictures_of[parent] = _pictures_in(root, parent)
        # The picture's name in the XML file is not used: it is often the one from before the picture was moved.
        listed.append(_ListedImage(annotation, pictures_of[parent].get(stem, f"{stem}.jpg")))
    return listed


def _pictures_in(root: Path, folder: str) -> dict[str, str]:
    """Return the names of the pictures in a folder, relative to the root, by their names without suffix."""
    names = os.listdir(root / folder) if (root / folder).is_dir() else []
    pictures = {}
    for suffix in reversed(_SUFFIXES):  # the first suffix takes precedence
        for name in names:
            if name.lower().endswith(suffix):
                pictures[os.path.join(folder, name[: -len(suffix)])] = os.path.join(folder, name)
    return pictures


def _read(place: str, root: Path, listed: Sequence[_ListedImage], classes: Sequence[str]) -> Content:
    labels = {name: number for number, name in enumerate(classes, start=1)}
    images: list[Content] = []
    annotations: list[Content] = []
    unknown: dict[str, Path] = {}
    for number, image in enumerate(listed, start=1):
        tree = _parse(place, image.annotation)
        width, height = _size(place, tree, image.annotation, root / image.picture)
        images.append({"id": number, "file_name": image.picture, "width": width, "height": height})
        for thing in tree.findall("object"):
            name = (thing.findtext("name") or "").strip()
            left, top, right, bottom = _corners(place, thing, image.annotation)
            if name not in labels:
                unknown.setdefault(name, image.annotation)
                continue
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": labels[name],
                    "bbox": [left - 1, top - 1, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": int((thing.findtext("difficult") or "0").strip() not in ("0", "")),
                }
            )
    if unknown:
        raise UserError(
            f"{place}: {next(iter(unknown.values()))}: an object has the class {next(iter(unknown))!r}; "
            f"dataset.classes lacks {', '.join(map(repr, sorted(unknown)))}, and has {', '.join(classes)}"
        )
    categories = [{"id": label, "name": name} for name, label in labels.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _parse(place: str, path: Path) -> ElementTree.Element:
    try:
        tree = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise UserError(f"{place}: {path}: not XML: {error}") from None
    except (OSError, ValueError, LookupError) as error:  # an encoding may be unknown
        raise UserError(f"{place}: {path}: cannot be read: {error}") from None
    if tree.tag != "annotation":
        raise UserError(f"{place}: {path}: found <{tree.tag}>, expected Pascal VOC's <annotation>")
    return tree


def _size(place: str, tree: ElementTree.Element, path: Path, picture: Path) -> tuple[int, int]:
    """Return an image's width and height in pixels, from the annotation if it has them, else from the picture."""
    sides = [tree.findtext(f"size/{side}") for side in ("width", "height")]
    try:
        width, height = (int(float(side or 0)) for side in sides)
    except (ValueError, OverflowError):
        raise UserError(f"{place}: {path}: found the size {sides}, expected two numbers") from None
    if width > 0 and height > 0:
        return width, height
    try:
        with Image.open(picture) as image:
            return image.size
    except OSError as error:
        raise UserError(f"{place}: {path}: has no size, and {picture} cannot be read: {error}") from None


def _corners(place: str, thing: ElementTree.Element, path: Path) -> list[int]:
    """Return left, top, right and bottom of an object's box: its first and last pixels, counted from 1."""
    texts = [thing.findtext(f"bndbox/{corner}") for corner in _CORNERS]
    try:
        return [int(float(text or "")) for text in texts]
    except (ValueError, OverflowError):
        name = (thing.findtext("name") or "").strip()
        found = ", ".join(f"{corner} {text}" for corner, text in zip(_CORNERS, texts, strict=True))
        raise UserError(f"{place}: {path}: the box of {name!r} has {found}; expected four numbers") from None
