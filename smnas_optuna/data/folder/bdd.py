"""BDD100K's labels: a json file of frames for each part."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from smnas_optuna.data import bdd
from smnas_optuna.data.folder.files import FolderFiles
from smnas_optuna.data.folder.json_layout import ABSENT, JsonLayout
from smnas_optuna.data.folder.layout import Box, FormatName, Labels, PartName, file_of_each_part, nearest


@dataclass(frozen=True)
class BddLayout(JsonLayout):
    """A folder with BDD100K's labels; see :class:`~smnas_optuna.data.folder.layout.Layout`."""

    format: ClassVar[FormatName] = "bdd"
    classes: ClassVar[tuple[str, ...]] = bdd.CLASSES

    def sources(self, part: PartName) -> Sequence[Path]:
        """Return the images that may belong to a part, and its json file."""
        return [self.files.root / name for name in (self.annotations[part], *self.files.images)]

    def labels(self, part: PartName) -> Labels:
        """Read the labels of a part; raises UserError."""
        path = self.files.root / self.annotations[part]
        content = bdd.read_frames(str(path), self.files.json_of(self.annotations[part]))
        labels = Labels()
        image_of: dict[int, Path] = {}
        for image in content["images"]:
            name = image["file_name"]
            found = nearest(self.annotations[part], self.files.images_by_name.get(PurePosixPath(name).name, ()))
            if found is None:
                labels.leave_out(ABSENT, name)
            else:
                image_of[image["id"]] = self.files.root / found
                labels.boxes[self.files.root / found] = []
        for box in content["annotations"]:
            if box["image_id"] in image_of:
                name = bdd.CLASSES[box["category_id"] - 1]
                left, top, width, height = box["bbox"]
                labels.boxes[image_of[box["image_id"]]].append(
                    Box(name, left, top, width, height, bool(box["iscrowd"]))
                )
        return labels


def find_bdd(files: FolderFiles) -> BddLayout | None:
    """Return the layout of a folder with BDD100K's labels; None if it has none.

    Raises:
        UserError: Several json files are for the same part.
    """
    annotations = file_of_each_part(
        files.root, [name for name in files.with_suffix(".json") if _is_bdd(files.json_of(name))]
    )
    return BddLayout(files, annotations) if annotations else None


def _is_bdd(content: Any) -> bool:
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        return False
    return isinstance(content[0].get("name"), str) and ("labels" in content[0] or "attributes" in content[0])
