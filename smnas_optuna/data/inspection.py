"""What is in a split's annotations, and all that is wrong with them.

Opening a data set stops at the first mistake; an inspection goes on, and leaves out what it cannot use.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from smnas_optuna.data.datasets import FIELDS, UNIQUE_FIELDS, fault_of
from smnas_optuna.parts.architecture import InputSize

Numbers = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Record = dict[str, Any]

_EXAMPLES = 3
_TOLERANCE = 1.0  # pixels that a box may reach beyond its image: some tools count from 1, or round up
_SMALL, _LARGE = 32**2, 96**2  # bounds of COCO's AP for small, medium and large objects, in square pixels


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a data set.

    Args:
        place: In which split.
        what: A sentence, or the things that it is wrong with.
        stops: Whether a search is refused for it, or would fail of it.
        count: How many things there are.
        examples: The first few of them; none of a sentence.
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
    """The smallest of some numbers, their median and the largest."""

    smallest: float
    median: float
    largest: float


@dataclass(frozen=True)
class BoxSizes:
    """How large boxes are where their images are scaled to fit an input size.

    Args:
        input_size: ``WIDTHxHEIGHT``; None for the images as they are.
        small: Boxes of an area below 32x32 pixels, as COCO's AP for small objects takes them.
        medium: Boxes between.
        large: Boxes above 96x96 pixels.
        side: Square root of width times height, in pixels.
    """

    input_size: str | None
    small: int
    medium: int
    large: int
    side: Spread | None


@dataclass(frozen=True)
class Summary:
    """What a split consists of.

    Args:
        images: Images listed.
        empty_images: Those of them without a box.
        image_sizes: Number of images of each ``WIDTHxHEIGHT`` in their annotations, the most frequent first.
        boxes: Boxes listed.
        crowds: Those of them that count neither for nor against a detector: crowds, and VOC's difficult objects.
        passed_over: Those of them that training passes over, for they have no extent or no part in their image.
        boxes_per_class: Boxes to learn from or be scored on, without crowds and those passed over; of these are the
            following too.
        boxes_per_image: Their number in each image.
        aspect_ratio: Width divided by height.
        box_sizes: How large they are in the images as they are, and at each input size.
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
    """What a split's annotations hold.

    Args:
        summary: Of what is sound in them.
        faults: All that is wrong with them.
        images: The sound records of images.
        classes: In the order of the categories.
    """

    summary: Summary
    faults: tuple[Fault, ...]
    images: tuple[Record, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class _Boxes:
    """Boxes of known images and classes, as arrays over them.

    Args:
        record: Index of each one's annotation.
        owner: Index of each one's image.
        label: Index of each one's category.
        bbox: Left, top, width and height, boxes x 4.
        area: As annotated; of COCO's boxes that of the object's mask.
        crowd: Whether it does not count.
        extent: Width and height of each one's image, boxes x 2.
    """

    record: npt.NDArray[np.int64]
    owner: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    bbox: Numbers
    area: Numbers
    crowd: Mask
    extent: Numbers


def inspect_annotations(place: str, content: Any, input_sizes: Sequence[InputSize]) -> Inspection:
    """Inspect the content of a COCO json file.

    Args:
        place: Names the split in faults.
        content: Whatever the file holds.
        input_sizes: What a search may scale the images to.
    """
    sound, faults = _records(place, content)
    images, annotations, categories = sound.values()
    classes = tuple(category["name"] for category in categories)
    boxes = _arrays(images, annotations, categories)
    broken = _broken(boxes)
    kinds = {f"{what}, which training passes over": mask for what, mask in broken.items()} | _doubtful(boxes, broken)
    for what, mask in kinds.items():
        concerned = [
            _describe(images[boxes.owner[index]], annotations[boxes.record[index]], classes[boxes.label[index]])
            for index in np.flatnonzero(mask)
        ]
        faults += collect(place, f"boxes {what}", concerned, stops=False)
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
        empty_images=len(images) - len(np.unique(boxes.owner)),
        image_sizes=dict(Counter(_size(image) for image in images).most_common()),
        boxes=len(annotations),
        crowds=int(boxes.crowd.sum()),
        passed_over=int(passed_over.sum()),
        boxes_per_class=dict(zip(classes, numbers, strict=True)),
        boxes_per_image=_spread(np.bincount(boxes.owner[counted], minlength=len(images))),
        aspect_ratio=_spread(boxes.bbox[counted, 2] / boxes.bbox[counted, 3]),
        box_sizes=tuple(_box_sizes(boxes, counted, size) for size in (None, *input_sizes)),
    )
    return Inspection(summary, tuple(faults), tuple(images), classes)


def collect(place: str, what: str, things: Sequence[str], *, stops: bool) -> tuple[Fault, ...]:
    """Return the fault that some things have, unless there are none."""
    return (Fault(place, what, stops, len(things), tuple(things[:_EXAMPLES])),) if things else ()


def scale_to_fit(width: Numbers, height: Numbers, size: InputSize) -> Numbers:
    """Return what images are multiplied by at an input size, which MMDetection turns to be as upright as the image."""
    long, short = max(size.width, size.height), min(size.width, size.height)
    scale: Numbers = np.minimum(long / np.maximum(width, height), short / np.minimum(width, height))
    return scale


def _records(place: str, content: Any) -> tuple[dict[str, list[Record]], list[Fault]]:
    """Return the records that can be used, by the names of their lists, and what is wrong with the others."""
    faults: list[Fault] = []
    sound: dict[str, list[Record]] = {}
    for part in FIELDS:
        records = content.get(part) if isinstance(content, dict) else None
        if not isinstance(records, list):
            faults.append(Fault(place, f"not COCO annotations: no list of records under {part!r}", stops=True))
            records = []
        sound[part], faulty = _sort_out(records, part)
        faults += collect(place, f"records of {part} not in COCO's format", faulty, stops=True)
    images, annotations, categories = sound.values()
    for part, field in UNIQUE_FIELDS:
        repeated = _repeated(sound[part], field)
        faults += collect(place, f"{field}s that several {part} have", repeated, stops=True)
    repeated = _repeated(images, "file_name")
    faults += collect(place, "file_names that several images have", repeated, stops=False)
    low = [f"annotation {box['id']}" for box in annotations if box["id"] < 1]
    faults += collect(place, "annotations with an id below 1", low, stops=True)
    for field, named in (("image_id", images), ("category_id", categories)):
        known = {record["id"] for record in named}
        strays = [f"annotation {box['id']} has {box[field]!r}" for box in annotations if box[field] not in known]
        faults += collect(place, f"annotations of an unknown {field}", strays, stops=True)
    return sound, faults


def _sort_out(records: Sequence[Any], part: str) -> tuple[list[Record], list[str]]:
    """Return the records that are in COCO's format, and what is wrong with the others."""
    sound, faulty = [], []
    for number, record in enumerate(records):
        fault = fault_of(record, part) if isinstance(record, dict) else f"{record!r} for a record"
        if fault is None:
            sound.append(record)
        else:
            faulty.append(f"{part}[{number}] has {fault}")
    return sound, faulty


def _repeated(records: Iterable[Mapping[str, Any]], field: str) -> list[str]:
    numbers = Counter(record[field] for record in records)
    return [f"{value!r}: {number} times" for value, number in numbers.items() if number > 1]


def _arrays(images: Sequence[Record], annotations: Sequence[Record], categories: Sequence[Record]) -> _Boxes:
    """Return the boxes of known images and classes."""
    owner, label = _indices(annotations, "image_id", images), _indices(annotations, "category_id", categories)
    known = (owner >= 0) & (label >= 0)
    extents = np.array([(image["width"], image["height"]) for image in images], dtype=np.float64).reshape(-1, 2)
    return _Boxes(
        record=np.flatnonzero(known),
        owner=owner[known],
        label=label[known],
        bbox=np.array([box["bbox"] for box in annotations], dtype=np.float64).reshape(-1, 4)[known],
        area=np.array([box["area"] for box in annotations], dtype=np.float64)[known],
        crowd=np.array([bool(box["iscrowd"]) for box in annotations], dtype=np.bool_)[known],
        extent=extents[owner[known]],
    )


def _indices(annotations: Sequence[Record], field: str, records: Sequence[Record]) -> npt.NDArray[np.int64]:
    """Return which image or category each annotation means; -1 for an unknown one."""
    known = {record["id"]: index for index, record in enumerate(records)}
    return np.array([known.get(box[field], -1) for box in annotations], dtype=np.int64)


def _broken(boxes: _Boxes) -> dict[str, Mask]:
    """Return the boxes that MMDetection's CocoDataset leaves out, by what is wrong with them; each is in one kind."""
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
    """Return the boxes that are used although something seems to be wrong with them."""
    usable = ~np.logical_or.reduce(list(broken.values()))
    ends = boxes.bbox[:, :2] + boxes.bbox[:, 2:]
    beyond = (boxes.bbox[:, :2] < -_TOLERANCE).any(axis=1) | (ends > boxes.extent + _TOLERANCE).any(axis=1)
    same = pd.DataFrame(boxes.bbox).assign(owner=boxes.owner, label=boxes.label).duplicated().to_numpy()
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
