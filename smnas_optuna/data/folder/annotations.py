"""Converts the labels of data folders to COCO's json format, in the cache."""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from smnas_optuna.data.annotations import Content, convert
from smnas_optuna.data.folder.layout import Box, Layout, PartName
from smnas_optuna.data.picture_file import THREADS, inspect_picture
from smnas_optuna.errors import UserError

# Part of the names of cached files: increase it with every change to what is read, so that old files are not used.
_READER = "folder-v1"
_NOT_OPENED = "images that cannot be opened"
_OTHER_SIZE = "images of another size than their labels say, whose boxes are used as they are"
_EXAMPLES = 3


def annotations_of(layout: Layout, parts: Iterable[PartName]) -> Path:
    """Convert parts of a data folder, and return the path of the COCO json file.

    Its file names are relative to ``layout.images``. Images that cannot be used are left out. The file lists these
    and other problems, see :func:`problems_of`. Boxes are converted as they are, even if they reach beyond their
    images.

    Args:
        layout: The data folder.
        parts: Parts to convert into one file.

    Raises:
        UserError: More than half of the images cannot be used, or a label has an unknown class.
    """
    parts = tuple(parts)
    sources = [source for part in parts for source in layout.sources(part)]
    arguments = [layout.format, str(layout.images), *parts]
    try:
        return convert(_READER, arguments, sources, lambda: _content(layout, parts))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: was removed while the data were read") from None


def problems_of(content: Content) -> dict[str, tuple[int, list[str]]]:
    """Return the problems of converted annotations: what is wrong, with its number and the first examples."""
    recorded: dict[str, Any] = content.get("info", {}).get("problems", {})
    return {what: (each["number"], each["examples"]) for what, each in recorded.items()}


def divided(annotations: Path, names: Iterable[str]) -> tuple[Path, Path]:
    """Divide converted annotations, and return the paths of both files.

    Args:
        annotations: The file to divide.
        names: File names of the images of the second file; the others are in the first.
    """
    chosen = frozenset(names)

    def part(*, is_chosen: bool) -> Content:
        content: Content = json.loads(annotations.read_bytes())
        images = [image for image in content["images"] if (image["file_name"] in chosen) == is_chosen]
        ids = {image["id"] for image in images}
        boxes = [box for box in content["annotations"] if box["image_id"] in ids]
        return content | {"images": images, "annotations": boxes} | ({"info": {}} if is_chosen else {})

    first, second = (
        convert(_READER, [side, *sorted(chosen)], [annotations], partial(part, is_chosen=side == "chosen"))
        for side in ("others", "chosen")
    )
    return first, second


def _content(layout: Layout, parts: Iterable[PartName]) -> Content:
    ids = {name: number for number, name in enumerate(layout.classes, start=1)}
    images: list[Content] = []
    annotations: list[Content] = []
    left_out: dict[str, list[str]] = {}
    notes: dict[str, list[str]] = {}
    for part in parts:
        labels = layout.labels(part)
        left_out |= {what: left_out.get(what, []) + where for what, where in labels.left_out.items()}
        notes |= {what: notes.get(what, []) + where for what, where in labels.notes.items()}
        with ThreadPoolExecutor(THREADS) as pool:
            pictures = pool.map(partial(inspect_picture, depth="header"), labels.boxes)
            for (path, boxes), picture in zip(labels.boxes.items(), pictures, strict=True):
                name = path.relative_to(layout.images).as_posix() if path.is_relative_to(layout.images) else str(path)
                if picture.size is None:
                    left_out.setdefault(_NOT_OPENED, []).append(f"{name}: {picture.failure}")
                    continue
                width, height = picture.size
                annotated = labels.sizes.get(path, (0, 0))
                if all(annotated) and annotated != picture.size:
                    notes.setdefault(_OTHER_SIZE, []).append(
                        f"{name}: {width}x{height}, labelled as {annotated[0]:g}x{annotated[1]:g}"
                    )
                images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
                scale = picture.size if labels.are_shares else (1, 1)
                annotations += [
                    _annotation(number, len(images), ids[box.name], box, scale)
                    for number, box in enumerate(boxes, start=len(annotations) + 1)
                ]
    _refuse_unusable(layout, len(images), left_out)
    problems = {f"{what}, which are left out": where for what, where in left_out.items()} | notes
    return {
        "info": {
            "problems": {
                what: {"number": len(where), "examples": where[:_EXAMPLES]} for what, where in problems.items()
            }
        },
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
    }


def _annotation(number: int, image: int, category: int, box: Box, scale: tuple[int, int]) -> Content:
    width, height = box.width * scale[0], box.height * scale[1]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [box.left * scale[0], box.top * scale[1], width, height],
        "area": width * height if box.area is None else box.area,
        "iscrowd": int(box.is_crowd),
    }


def _refuse_unusable(layout: Layout, usable: int, left_out: dict[str, list[str]]) -> None:
    """Raise UserError if so many images are left out that something is wrong with all of them."""
    number = sum(map(len, left_out.values()))
    if number > usable:
        what, where = max(left_out.items(), key=lambda item: len(item[1]))
        raise UserError(f"{layout.images}: {len(where):,} of {usable + number:,} are {what}, such as {where[0]}")
    if not usable:
        raise UserError(f"{layout.images}: no image; expected images with boxes")
