"""COCO's labels: a json file for each part, beside the images or in a folder of its own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from pycocotools import mask

from smnas_optuna.data.annotations import Content, is_number
from smnas_optuna.data.folder.files import FolderFiles
from smnas_optuna.data.folder.json_layout import ABSENT, JsonLayout
from smnas_optuna.data.folder.layout import Box, FormatName, Labels, PartName, box_around, file_of_each_part, nearest
from smnas_optuna.errors import UserError

_LISTS = ("images", "annotations", "categories")
# COCO's other files, which describe the same images.
_OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
_EXPECTED = "COCO annotations"

_UNUSABLE = "annotations without a box"


@dataclass(frozen=True)
class CocoLayout(JsonLayout):
    """A folder with COCO's labels; see :class:`~smnas_optuna.data.folder.layout.Layout`."""

    format: ClassVar[FormatName] = "coco"

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The categories of all parts, in the order in which they are first listed."""
        names: dict[str, None] = {}
        for part in self.parts:
            names |= dict.fromkeys(_names(self._path(part), self.files.json_of(self.annotations[part])).values())
        return tuple(names)

    def sources(self, part: PartName) -> Sequence[Path]:
        """Return the images that may belong to a part, and the json files of all parts, which decide the classes."""
        return [*map(self._path, self.parts), *(self.files.root / name for name in self.files.images)]

    def labels(self, part: PartName) -> Labels:
        """Read the labels of a part; raises UserError."""
        path, content = self._path(part), self.files.json_of(self.annotations[part])
        names = _names(path, content)
        labels = Labels()
        image_of: dict[Any, Path] = {}
        for image in content["images"]:
            if not isinstance(image.get("file_name"), str) or "id" not in image:
                raise UserError(f"{path}: an image has no id or no file_name, so not {_EXPECTED}")
            found = self._find(part, image["file_name"])
            if found is None:
                labels.leave_out(ABSENT, image["file_name"])
            else:
                image_of[image["id"]] = self.files.root / found
                labels.boxes.setdefault(self.files.root / found, [])
                if is_number(image.get("width")) and is_number(image.get("height")):
                    labels.sizes[self.files.root / found] = image["width"], image["height"]
        listed = {image["id"] for image in content["images"]}
        for annotation in content["annotations"]:
            where = f"annotation {annotation.get('id')}"
            if annotation.get("image_id") not in listed:
                labels.note("annotations of images that are not listed", where)
                continue
            if annotation.get("category_id") not in names:
                raise UserError(
                    f"{path}: {where} has the category {annotation.get('category_id')!r}; the file lists "
                    f"{', '.join(map(str, names))}"
                )
            box = _box(annotation, names[annotation["category_id"]])
            if box is None:
                labels.note(_UNUSABLE, where)
            elif annotation["image_id"] in image_of:
                labels.boxes[image_of[annotation["image_id"]]].append(box)
        return labels

    def _path(self, part: PartName) -> Path:
        return self.files.root / self.annotations[part]

    def _find(self, part: PartName, file_name: str) -> str | None:
        """Return the image of a part that a json file names, wherever below the folder it is."""
        wanted = PurePosixPath(file_name.replace("\\", "/"))
        named = self.files.images_by_name.get(wanted.name, [])
        # The whole path if it is there; else only the name, since annotations keep folders of other machines.
        same = [name for name in named if f"/{name}".endswith(f"/{wanted}")]
        return nearest(self.annotations[part], same or named)


def find_coco(files: FolderFiles) -> CocoLayout | None:
    """Return the layout of a folder with COCO's labels; None if it has none.

    Raises:
        UserError: Several json files are for the same part.
    """
    annotations = file_of_each_part(
        files.root,
        [
            name
            for name in files.with_suffix(".json")
            if not PurePosixPath(name).name.startswith(_OTHER_TASKS) and _is_coco(files.json_of(name))
        ],
    )
    return CocoLayout(files, annotations) if annotations else None


def _is_coco(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(content.get(key), list) and all(isinstance(record, dict) for record in content[key])
        for key in _LISTS
    )


def _names(path: Path, content: Content) -> dict[Any, str]:
    """Return the names of the categories by id, without one that only groups the others, as Roboflow writes it."""
    categories = content["categories"]
    if not all("id" in each and isinstance(each.get("name"), str) for each in categories):
        raise UserError(f"{path}: a category has no id or no name, so not {_EXPECTED}")
    used = {annotation.get("category_id") for annotation in content["annotations"]}
    groups = {each.get("supercategory") for each in categories}
    names = {
        each["id"]: each["name"]
        for each in categories
        if each["id"] in used or each.get("supercategory") != "none" or each["name"] not in groups
    }
    if len(set(names.values())) < len(names):
        raise UserError(f"{path}: several categories have the same name; expected all different")
    return names


def _box(annotation: Mapping[str, Any], name: str) -> Box | None:
    """Return the box of an annotation, or the one around its mask; None if it has neither."""
    corners = annotation.get("bbox") or _box_of_mask(annotation.get("segmentation"))
    if not (isinstance(corners, list) and len(corners) == 4 and all(map(is_number, corners))):
        return None
    area = annotation.get("area")
    usable_area = float(area) if is_number(area) and area and math.isfinite(area) else None
    left, top, width, height = map(float, corners)
    return Box(name, left, top, width, height, bool(annotation.get("iscrowd")), usable_area)


def _box_of_mask(segmentation: Any) -> list[float] | None:
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list | str):
        counts, size = segmentation["counts"], segmentation.get("size", [0, 0])
        encoded = mask.frPyObjects(segmentation, *size) if isinstance(counts, list) else segmentation
        return [float(number) for number in mask.toBbox(encoded)]
    if isinstance(segmentation, list) and segmentation and all(isinstance(each, list) for each in segmentation):
        numbers = [number for polygon in segmentation for number in polygon]
        if not numbers or len(numbers) % 2 or not all(map(is_number, numbers)):
            return None
        return [*box_around(numbers)]
    return None
