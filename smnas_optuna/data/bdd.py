"""Converts BDD100K's detection labels, of 2018 or 2020 (Yu et al., CVPR 2020), to COCO's format.

Labels without a box, which are lanes and drivable areas, are ignored. As in BDD100K's own evaluation, crowds and the
categories ``other person``, ``other vehicle`` and ``trailer`` are regions in which detections are not scored.
"""

from pathlib import Path
from typing import Any, Final

from smnas_optuna.data.annotations import Content, convert, is_number, read_json
from smnas_optuna.errors import UserError

CLASSES: Final = (
    *("pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    *("traffic light", "traffic sign"),
)

# Part of the names of cached files: increase it with every change to what is read, so that old files are not used.
_READER = "bdd-v1"
_OTHER_NAMES = {"person": "pedestrian", "motor": "motorcycle", "bike": "bicycle", "van": "car", "caravan": "car"}
_IGNORED = {"other person": "pedestrian", "other vehicle": "car", "trailer": "truck"}
_WIDTH, _HEIGHT = 1280, 720
_CORNERS = ("x1", "y1", "x2", "y2")


def bdd_annotations(place: str, path: Path) -> Path:
    """Convert BDD100K's labels to a COCO JSON file, and return its path; an image's ``file_name`` is its frame's name.

    Args:
        place: Name of the file at the beginning of error messages.
        path: Path of the file.

    Raises:
        UserError: The file is missing or not in BDD100K's format, or a box has no numbers or an unknown category.
    """
    try:
        return convert(_READER, (), (path,), lambda: read_frames(place, read_json(place, path, "labels of BDD100K")))
    except FileNotFoundError:
        raise UserError(f"{place}: no such file") from None


def read_frames(place: str, frames: Any) -> Content:
    """Return the content of BDD100K's json file in COCO's format; raises UserError, which begins with ``place``."""
    if not isinstance(frames, list):
        raise UserError(f"{place}: not labels of BDD100K: expected a list of frames")
    images: list[Content] = []
    annotations: list[Content] = []
    for number, frame in enumerate(frames):
        if not isinstance(frame, dict) or not isinstance(frame.get("name"), str):
            raise UserError(f"{place}: frame {number} has no name, so not labels of BDD100K")
        images.append({"id": number + 1, "file_name": frame["name"], "width": _WIDTH, "height": _HEIGHT})
        labels = frame.get("labels") or []
        if not isinstance(labels, list) or not all(isinstance(label, dict) for label in labels):
            raise UserError(f"{place}: {frame['name']}: expected a list of records under 'labels'")
        for label in labels:
            if label.get("box2d") is None:
                continue
            category = str(label.get("category"))
            name = _IGNORED.get(category) or _OTHER_NAMES.get(category, category)
            if name not in CLASSES:
                raise UserError(
                    f"{place}: {frame['name']}: a box has the category {category!r}; expected one of "
                    f"{', '.join(CLASSES)}"
                )
            left, top, right, bottom = _corners(place, frame["name"], label["box2d"])
            attributes = label.get("attributes")
            is_crowd = isinstance(attributes, dict) and bool(attributes.get("crowd"))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": CLASSES.index(name) + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": int(is_crowd or category in _IGNORED),
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _corners(place: str, frame: str, box: Any) -> list[float]:
    corners: list[Any] = [box.get(corner) if isinstance(box, dict) else None for corner in _CORNERS]
    if not all(map(is_number, corners)):
        raise UserError(f"{place}: {frame}: found the box {box!r}, expected numbers x1, y1, x2 and y2")
    return [float(corner) for corner in corners]
