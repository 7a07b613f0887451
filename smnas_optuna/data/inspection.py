"""Summarises a split's annotations, and collects everything that is wrong with them.

Opening a data set stops at the first fault; an inspection continues without the records that have faults.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from smnas_optuna.data.datasets import FIELDS, UNIQUE_FIELDS, find_fault
from smnas_optuna.parts.architecture import InputSize

Numbers = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Record = dict[str, Any]

_EXAMPLES = 3
_TOLERANCE = 1.0  # pixels by which a box may exceed its image: some tools count pixels from 1, or round up
_SMALL, _LARGE = 32**2, 96**2  # areas, in square pixels, that separate COCO's small, medium and large objects


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a data set.

    Args:
        place: Name of the split.
        what: A sentence, or a description of the records or images that have the fault.
        stops: Whether a search would be refused or fail because of it.
        count: Number of records or images that have the fault.
        examples: The first few of them; empty if ``what`` is a sentence.
    """

    place: str
    what: str
    stops: bool
    count: int = 1
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.place}: {self.what}{f': {self.count:,}' if self.examples else ''}"


@dataclass(frozen=True)
class Spread:
    """Smallest value, median and largest value."""

    smallest: float
    median: float
    largest: float


@dataclass(frozen=True)
class BoxSizes:
    """Sizes of boxes after their images are scaled to fit an input size.

    Args:
        input_size: ``WIDTHxHEIGHT``; None for images that are not scaled.
        small: Number of boxes with an area below 32x32 pixels, as in COCO's AP for small objects.
        medium: Number of boxes in between.
        large: Number of boxes with an area above 96x96 pixels.
        side: Square root of width times height, in pixels.
    """

    input_size: str | None
    small: int
    medium: int
    large: int
    side: Spread | None


@dataclass(frozen=True)
class Summary:
    """Summary of a split. The last four entries are about the boxes that are trained on and scored.

    Args:
        images: Number of images.
        empty_images: Number of images without a box.
        image_sizes: Number of images of each ``WIDTHxHEIGHT`` in the annotations, the most frequent first.
        boxes: Number of boxes.
        crowds: Number of boxes that are not scored: crowds, and VOC's difficult objects.
        passed_over: Number of boxes that training ignores, since they have no extent or lie outside of their image.
        boxes_per_class: Number of boxes that are neither crowds nor ignored, by class.
        boxes_per_image: Number of these boxes in an image.
        aspect_ratio: Their width divided by their height.
        box_sizes: Their sizes in the images that are not scaled, and at each input size.
    """

    images: int
    empty_images: int
    image_sizes: dict[str, int]
    boxes: int
    crowds: int
    passed_over: int
    boxes_per_class: dict[str, int]
    boxes_per_image: Spread | None
    aspect_ratio: Spread | None
    box_sizes: tuple[BoxSizes, ...]


@dataclass(frozen=True)
class Inspection:
    """The result of inspecting a split's annotations.

    Args:
        summary: Summary of the valid records.
        faults: Everything that is wrong with the annotations.
        images: The valid records of images.
        classes: Class names, in the order of the categories.
    """

    summary: Summary
    faults: tuple[Fault, ...]
    images: tuple[Record, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class _Boxes:
    """Arrays over all boxes of known images and classes.

    Args:
        record: Index of the box's annotation, shape (n,).
        image: Index of its image, shape (n,).
        label: Index of its category, shape (n,).
        bbox: Left, top, width and height, in pixels, shape (n, 4).
        area: Annotated area, in square pixels, shape (n,); in COCO's own files that of the object's mask.
        crowd: Whether the box is a crowd, which is not scored, shape (n,).
        extent: Width and height of its image, in pixels, shape (n, 2).
    """

    record: npt.NDArray[np.int64]
    image: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    bbox: Numbers
    area: Numbers
    crowd: Mask
    extent: Numbers


def inspect_annotations(place: str, content: Any, input_sizes: Sequence[InputSize]) -> Inspection:
    """Inspect the content of a COCO JSON file.

    Args:
        place: Name of the split, for the faults.
        content: Content of the file; it need not be valid.
        input_sizes: Input sizes to summarise the sizes of boxes for.
    """
    valid, faults = _records(place, content)
    images, annotations, categories = valid.values()
    classes = tuple(category["name"] for category in categories)
    boxes = _arrays(images, annotations, categories)
    broken = _broken(boxes)
    kinds = {f"{what}, which training passes over": mask for what, mask in broken.items()} | _doubtful(boxes, broken)
    for what, mask in kinds.items():
        faulty = [
            _describe(images[boxes.image[index]], annotations[boxes.record[index]], classes[boxes.label[index]])
            for index in np.flatnonzero(mask)
        ]
        faults += collect(place, f"boxes {what}", faulty, stops=False)
    passed_over = np.logical_or.reduce(list(broken.values()))
    counted = ~passed_over & ~boxes.crowd
    numbers = np.bincount(boxes.label[counted], minlength=len(classes)).tolist()
    if not counted.any():
        faults.append(Fault(place, "no box to learn from or be scored on", stops=True))
    else:
        absent = [name for name, number in zip(classes, numbers, strict=True) if number == 0]
        faults += collect(place, "classes without a box that counts", absent, stops=False)
    summary = Summary(
        images=len(images),
        empty_images=len(images) - len(np.unique(boxes.image)),
        image_sizes=dict(Counter(_size(image) for image in images).most_common()),
        boxes=len(annotations),
        crowds=int(boxes.crowd.sum()),
        passed_over=int(passed_over.sum()),
        boxes_per_class=dict(zip(classes, numbers, strict=True)),
        boxes_per_image=_spread(np.bincount(boxes.image[counted], minlength=len(images))),
        aspect_ratio=_spread(boxes.bbox[counted, 2] / boxes.bbox[counted, 3]),
        box_sizes=tuple(_box_sizes(boxes, counted, size) for size in (None, *input_sizes)),
    )
    return Inspection(summary, tuple(faults), tuple(images), classes)


def collect(place: str, what: str, faulty: Sequence[str], *, stops: bool) -> tuple[Fault, ...]:
    """Return one fault for all records or images that have it, or none if there are none.

    Args:
        place: Name of the split.
        what: Description of the fault.
        faulty: Descriptions of the records or images that have it.
        stops: Whether a search would be refused or fail because of it.
    """
    return (Fault(place, what, stops, len(faulty), tuple(faulty[:_EXAMPLES])),) if faulty else ()


def scale_to_fit(width: Numbers, height: Numbers, size: InputSize) -> Numbers:
    """Return the factors by which MMDetection scales images to fit an input size.

    The longer side of the input size is that of each image's longer side.

    Args:
        width: Widths of the images, in pixels, shape (n,).
        height: Heights of the images, in pixels, shape (n,).
        size: The input size.
    """
    long, short = max(size.width, size.height), min(size.width, size.height)
    scale: Numbers = np.minimum(long / np.maximum(width, height), short / np.minimum(width, height))
    return scale


def _records(place: str, content: Any) -> tuple[dict[str, list[Record]], list[Fault]]:
    """Return the valid records of each list by its name, and the faults of all others."""
    faults: list[Fault] = []
    valid: dict[str, list[Record]] = {}
    for part in FIELDS:
        records = content.get(part) if isinstance(content, dict) else None
        if not isinstance(records, list):
            faults.append(Fault(place, f"not COCO annotations: no list of records under {part!r}", stops=True))
            records = []
        valid[part], faulty = _sort_out(records, part)
        faults += collect(place, f"records of {part} not in COCO's format", faulty, stops=True)
    images, annotations, categories = valid.values()
    for part, field in UNIQUE_FIELDS:
        repeated = _repeated(valid[part], field)
        faults += collect(place, f"{field}s that several {part} have", repeated, stops=True)
    repeated = _repeated(images, "file_name")
    faults += collect(place, "file_names that several images have", repeated, stops=False)
    low = [f"annotation {box['id']}" for box in annotations if box["id"] < 1]
    faults += collect(place, "annotations with an id below 1", low, stops=True)
    for field, records in (("image_id", images), ("category_id", categories)):
        known = {record["id"] for record in records}
        unknown = [f"annotation {box['id']} has {box[field]!r}" for box in annotations if box[field] not in known]
        faults += collect(place, f"annotations of an unknown {field}", unknown, stops=True)
    return valid, faults


def _sort_out(records: Sequence[Any], part: str) -> tuple[list[Record], list[str]]:
    """Return the records that are in COCO's format, and descriptions of the others."""
    valid, faulty = [], []
    for number, record in enumerate(records):
        fault = find_fault(record, part) if isinstance(record, dict) else f"{record!r} for a record"
        if fault is None:
            valid.append(record)
        else:
            faulty.append(f"{part}[{number}] has {fault}")
    return valid, faulty


def _repeated(records: Iterable[Mapping[str, Any]], field: str) -> list[str]:
    numbers = Counter(record[field] for record in records)
    return [f"{value!r}: {number} times" for value, number in numbers.items() if number > 1]


def _arrays(images: Sequence[Record], annotations: Sequence[Record], categories: Sequence[Record]) -> _Boxes:
    """Return the boxes of known images and classes."""
    image, label = _indices(annotations, "image_id", images), _indices(annotations, "category_id", categories)
    known = (image >= 0) & (label >= 0)
    extents = np.array([(each["width"], each["height"]) for each in images], dtype=np.float64).reshape(-1, 2)
    return _Boxes(
        record=np.flatnonzero(known),
        image=image[known],
        label=label[known],
        bbox=np.array([box["bbox"] for box in annotations], dtype=np.float64).reshape(-1, 4)[known],
        area=np.array([box["area"] for box in annotations], dtype=np.float64)[known],
        crowd=np.array([bool(box["iscrowd"]) for box in annotations], dtype=np.bool_)[known],
        extent=extents[image[known]],
    )


def _indices(annotations: Sequence[Record], field: str, records: Sequence[Record]) -> npt.NDArray[np.int64]:
    """Return the index of each annotation's image or category; -1 for an unknown one."""
    known = {record["id"]: index for index, record in enumerate(records)}
    return np.array([known.get(box[field], -1) for box in annotations], dtype=np.int64)


def _broken(boxes: _Boxes) -> dict[str, Mask]:
    """Return disjoint masks of the boxes that MMDetection's CocoDataset ignores, by what is wrong with them."""
    inside = np.minimum(boxes.bbox[:, :2] + boxes.bbox[:, 2:], boxes.extent) - np.maximum(boxes.bbox[:, :2], 0)
    masks: dict[str, Mask] = {
        "without width or height": np.any(boxes.bbox[:, 2:] <= 0, axis=1),
        "narrower or lower than a pixel": np.any(boxes.bbox[:, 2:] < 1, axis=1),
        "outside their image": ~np.all(inside > 0, axis=1),
        "with an area of 0 or less": ~(boxes.area > 0),
    }
    taken = np.zeros(len(boxes.record), dtype=np.bool_)
    kinds: dict[str, Mask] = {}
    for what, mask in masks.items():
        kinds[what] = mask & ~taken
        taken |= mask
    return kinds


def _doubtful(boxes: _Boxes, broken: Mapping[str, Mask]) -> dict[str, Mask]:
    """Return masks of the boxes that are used although they may be wrong, by what may be wrong with them."""
    usable = ~np.logical_or.reduce(list(broken.values()))
    ends = boxes.bbox[:, :2] + boxes.bbox[:, 2:]
    beyond = (boxes.bbox[:, :2] < -_TOLERANCE).any(axis=1) | (ends > boxes.extent + _TOLERANCE).any(axis=1)
    same = pd.DataFrame(boxes.bbox).assign(image=boxes.image, label=boxes.label).duplicated().to_numpy()
    return {
        f"reaching more than {_TOLERANCE:g} pixel beyond their image": usable & beyond,
        "given before, with the same image and class": usable & same,
    }


def _describe(image: Record, box: Record, name: str) -> str:
    numbers = ", ".join(f"{number:g}" for number in box["bbox"])
    return f"{image['file_name']}: annotation {box['id']}, {name}, [{numbers}] in {_size(image)}"


def _size(image: Record) -> str:
    return f"{image['width']:g}x{image['height']:g}"


def _box_sizes(boxes: _Boxes, counted: Mask, input_size: InputSize | None) -> BoxSizes:
    bbox, area, extent = boxes.bbox[counted], boxes.area[counted], boxes.extent[counted]
    scale = np.ones(len(bbox)) if input_size is None else scale_to_fit(extent[:, 0], extent[:, 1], input_size)
    area = area * scale**2
    small, large = int((area < _SMALL).sum()), int((area > _LARGE).sum())
    side = scale * np.sqrt(bbox[:, 2] * bbox[:, 3])
    return BoxSizes(
        None if input_size is None else str(input_size), small, len(area) - small - large, large, _spread(side)
    )


def _spread(values: npt.NDArray[Any]) -> Spread | None:
    return Spread(float(values.min()), float(np.median(values)), float(values.max())) if len(values) else None
