"""Pascal VOC's labels: an XML file for each image, as LabelImg, CVAT, Label Studio and Roboflow also write them.

In VOC's own data sets pixels are counted from 1, see ``data/voc.py``; others count from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import ClassVar
from xml.etree import ElementTree

from smnas_optuna.data.folder.files import FolderFiles
from smnas_optuna.data.folder.layout import (
    PARTS,
    Box,
    FormatName,
    LabelFiles,
    Labels,
    PartName,
    folders_of,
    grouped_by_part,
    nearest,
)
from smnas_optuna.errors import UserError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
# Files of ImageSets/Main; others there list the images with a certain class.
_IMAGE_SETS: dict[str, PartName] = {
    **{"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}
_BOTH = "trainval"

_UNREADABLE = "images with XML files that cannot be read"
_NO_IMAGE = "XML files without an image"
_NO_XML = "images without an XML file"


@dataclass(frozen=True)
class VocLayout(LabelFiles):
    """A folder with Pascal VOC's labels; see :class:`~smnas_optuna.data.folder.layout.Layout`.

    Args:
        files: The folder's files.
        annotations: XML files of each part, relative to the folder.
        places: Where each part comes from.
        absent: XML files that image sets list and that do not exist.
    """

    annotations: dict[PartName, list[str]]
    places: dict[PartName, str]
    absent: tuple[str, ...] = ()

    format: ClassVar[FormatName] = "voc"

    @property
    def reason(self) -> str:
        """By what it was recognised."""
        number = sum(map(len, self.annotations.values()))
        return f"{number:,} XML files"

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """All classes of objects in the folder, sorted."""
        names = {box.name for labels in self._read.values() for boxes in labels.boxes.values() for box in boxes}
        return tuple(sorted(names))

    def place(self, part: PartName) -> str:
        """Say where the images of a part come from."""
        return self.places[part]

    def sources(self, part: PartName) -> Sequence[Path]:
        """Return the images of a part, and the XML files of all parts, which decide the classes."""
        images = [image for each in self.annotations[part] if (image := self._image_of(each)) is not None]
        labels = [each for names in self.annotations.values() for each in names]
        return [self.files.root / name for name in (*images, *labels)]

    def labels(self, part: PartName) -> Labels:
        """Read the labels of a part."""
        return self._read[part]

    @cached_property
    def _read(self) -> dict[PartName, Labels]:
        return {part: self._read_part(part) for part in self.parts}

    def _read_part(self, part: PartName) -> Labels:
        labels = Labels()
        for name in self.annotations[part]:
            image = self._image_of(name)
            if image is None:
                labels.leave_out(_NO_IMAGE, name)
                continue
            path = self.files.root / image
            try:
                labels.boxes[path], labels.sizes[path] = _read_xml(self.files.root / name)
            except ValueError as error:
                labels.leave_out(_UNREADABLE, f"{name}: {error}")
        if part == "train":
            for name in self.absent:
                labels.note("listed XML files that are absent", name)
            for name in self._without_annotation:
                labels.leave_out(_NO_XML, name)
        return labels

    @cached_property
    def _without_annotation(self) -> list[str]:
        """Images that belong to no XML file of the folder, not even one that no part lists."""
        stems = {PurePosixPath(name).stem for name in self.files.with_suffix(".xml")}
        return [name for name in self.files.images if PurePosixPath(name).stem not in stems]

    def _image_of(self, annotation: str) -> str | None:
        """Return the image of an XML file: of the same name beside it, in a folder near it, or anywhere."""
        # The image's name in the XML file is not used: it is often the one from before the image was renamed.
        return nearest(annotation, self.files.images_by_stem.get(PurePosixPath(annotation).stem, ()))


def find_voc(files: FolderFiles) -> VocLayout | None:
    """Return the layout of a folder with Pascal VOC's labels; None if it has none."""
    annotations = files.with_suffix(".xml")
    if not any(_is_annotation(files.root / name) for name in annotations[:5]):
        return None
    sets = [
        name for name in files.with_suffix(".txt") if PurePosixPath(name).parent.as_posix().endswith("ImageSets/Main")
    ]
    listed = _listed(files, sets)
    if listed is not None:
        return listed
    groups = grouped_by_part(annotations)
    return VocLayout(files, groups, {part: folders_of(names) for part, names in groups.items()})


def _read_xml(path: Path) -> tuple[list[Box], tuple[float, float]]:
    """Return the boxes of an XML file, and its image's width and height, 0 if unknown.

    Raises:
        ValueError: It is not in Pascal VOC's format, or a box has no numbers.
    """
    try:
        tree = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, LookupError) as error:
        raise ValueError(f"not XML: {error}") from None
    if tree.tag != "annotation":
        raise ValueError(f"found <{tree.tag}>, expected <annotation>")
    width, height = (float(tree.findtext(f"size/{side}") or 0) for side in ("width", "height"))
    # As MMDetection does it for VOC's own data.
    first = 1 if "VOC" in (tree.findtext("source/database") or "") else 0
    boxes = []
    for thing in tree.findall("object"):
        name = (thing.findtext("name") or "").strip()
        texts = [thing.findtext(f"bndbox/{corner}") for corner in _CORNERS]
        try:
            left, top, right, bottom = (float(text or "") for text in texts)
        except ValueError:
            raise ValueError(f"the box of {name!r} has {texts}, expected four numbers") from None
        if not name:
            raise ValueError("an object has no name")
        is_difficult = (thing.findtext("difficult") or "0").strip() not in ("0", "")
        boxes.append(Box(name, left - first, top - first, right - left, bottom - top, is_difficult))
    return boxes, (width, height)


def _is_annotation(path: Path) -> bool:
    try:
        return ElementTree.parse(path).getroot().tag == "annotation"
    except (ElementTree.ParseError, OSError, ValueError, LookupError):
        return False


def _listed(files: FolderFiles, sets: Sequence[str]) -> VocLayout | None:
    """Return the layout of VOC's own folders, whose image sets say what each part is; None without image sets."""
    known = set(files.names)
    lists: dict[PartName, list[str]] = {part: [] for part in PARTS}
    has_own_part = {
        PurePosixPath(name).parent for name in sets if _IMAGE_SETS.get(PurePosixPath(name).stem.lower()) == "train"
    }
    for name in sets:
        stem, folder = PurePosixPath(name).stem.lower(), PurePosixPath(name).parent
        part = "train" if stem == _BOTH and folder not in has_own_part else _IMAGE_SETS.get(stem)
        if part is not None:
            lists[part].append(name)
    annotations: dict[PartName, list[str]] = {}
    absent = []
    for part, names in lists.items():
        for name in names:
            folder = PurePosixPath(name).parent.parent.parent / "Annotations"
            for line in _lines(files.root / name):
                annotation = f"{folder}/{line}.xml"
                if annotation in known:
                    annotations.setdefault(part, []).append(annotation)
                else:
                    absent.append(annotation)
    if "train" not in annotations:
        return None
    return VocLayout(files, annotations, {part: ", ".join(lists[part]) for part in annotations}, tuple(absent))


def _lines(path: Path) -> list[str]:
    try:
        return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
