"""One data set, written in all layouts that data folders have."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import yaml

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Picture:
    """An image: its file, its size, and its objects as class, left, top, right and bottom in whole pixels."""

    file: Path
    size: tuple[int, int]
    things: tuple[tuple[str, Corners], ...]


@dataclass(frozen=True)
class Data:
    """Images of both parts by name, and the classes."""

    classes: tuple[str, ...]
    parts: dict[str, dict[str, Picture]]

    @property
    def whole(self) -> dict[str, Picture]:
        return {name: picture for part in self.parts.values() for name, picture in part.items()}


def read_coco(folder: Path, annotations: Mapping[str, Path], images: Callable[[str], Path], limit: int = 1000) -> Data:
    """Read COCO's files, the first images of each; boxes become whole pixels, and names are distinct."""
    parts = {}
    classes: tuple[str, ...] = ()
    for part, path in annotations.items():
        content = json.loads((folder / path).read_text(encoding="utf-8"))
        names = {category["id"]: category["name"] for category in content["categories"]}
        classes = tuple(names.values())
        things: dict[int, list[tuple[str, Corners]]] = {}
        for box in content["annotations"]:
            left, top, width, height = map(round, box["bbox"])
            corners = (left, top, left + width, top + height)
            things.setdefault(box["image_id"], []).append((names[box["category_id"]], corners))
        parts[part] = {
            f"{part}-{image['file_name']}": Picture(
                images(part) / image["file_name"],
                (image["width"], image["height"]),
                tuple(things.get(image["id"], ())),
            )
            for image in content["images"][:limit]
        }
    return Data(classes, parts)


def write_yolo(root: Path, data: Data, *, images: str = "images/{part}", polygons: bool = False) -> Path:
    """Write Ultralytics' layout, with data.yaml; ``images`` is the folder of a part."""
    for part, pictures in data.parts.items():
        for name, picture in pictures.items():
            path = place(root / images.format(part=part), name, picture)
            write_yolo_label(Path(str(path).replace("/images/", "/labels/")), picture, data.classes, polygons=polygons)
    parts = {part: images.format(part=part) for part in data.parts}
    description = {**parts, "nc": len(data.classes), "names": list(data.classes)}
    (root / "data.yaml").write_text(yaml.safe_dump(description), encoding="utf-8")
    return root


def write_roboflow_yolo(root: Path, data: Data) -> Path:
    """Write Roboflow's export for YOLO, whose paths lead out of the folder."""
    names = {"train": "train", "val": "valid"}
    for part, pictures in data.parts.items():
        for name, picture in pictures.items():
            path = place(root / names[part] / "images", name, picture)
            write_yolo_label(root / names[part] / "labels" / path.name, picture, data.classes)
    description: dict[str, Any] = {part: f"../{names[part]}/images" for part in data.parts}
    description |= {"test": "../test/images", "nc": len(data.classes), "names": list(data.classes)}
    (root / "data.yaml").write_text(yaml.safe_dump(description), encoding="utf-8")
    (root / "README.roboflow.txt").write_text("Blood cells\n", encoding="utf-8")
    return root


def write_yolo_lists(root: Path, data: Data) -> Path:
    """Write lists of images beside data.yaml, names as a mapping, and a path."""
    (root / "lists").mkdir(parents=True)
    for part, pictures in data.parts.items():
        paths = []
        for name, picture in pictures.items():
            path = place(root / "images", name, picture)
            write_yolo_label(root / "labels" / path.name, picture, data.classes)
            paths.append(f"../images/{path.name}")
        (root / "lists" / f"{part}.txt").write_text("\n".join(paths), encoding="utf-8")
    description: dict[str, Any] = {"path": str(root), "names": dict(enumerate(data.classes))}
    description |= {part: f"lists/{part}.txt" for part in data.parts}
    (root / "dataset.yaml").write_text(yaml.safe_dump(description), encoding="utf-8")
    return root


def write_yolo_without_yaml(root: Path, data: Data) -> Path:
    """Write what LabelImg writes, in a folder for each part: labels beside the images, and classes.txt."""
    for part, pictures in data.parts.items():
        for name, picture in pictures.items():
            write_yolo_label(place(root / part, name, picture), picture, data.classes)
    (root / "classes.txt").write_text("\n".join(data.classes), encoding="utf-8")
    return root


def write_coco(root: Path, data: Data) -> Path:
    """Write COCO's layout."""
    for part, pictures in data.parts.items():
        for name, picture in pictures.items():
            place(root / f"{part}2017", name, picture)
        write_json(root / "annotations" / f"instances_{part}2017.json", coco_content(pictures, data.classes))
    write_json(root / "annotations" / "captions_train2017.json", {"images": [], "annotations": [], "categories": []})
    return root


def write_roboflow_coco(root: Path, data: Data) -> Path:
    """Write Roboflow's export for COCO, whose first category groups the others."""
    for part, pictures in data.parts.items():
        folder = root / {"train": "train", "val": "valid"}[part]
        for name, picture in pictures.items():
            place(folder, name, picture)
        content = coco_content(pictures, data.classes, supercategory="things")
        content["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
        write_json(folder / "_annotations.coco.json", content)
    return root


def write_voc_sets(root: Path, data: Data) -> Path:
    """Write Pascal VOC's layout with image sets."""
    for part, pictures in data.parts.items():
        for name, picture in pictures.items():
            path = place(root / "JPEGImages", name, picture)
            write_xml(root / "Annotations" / f"{path.stem}.xml", picture)
        sets = root / "ImageSets" / "Main"
        sets.mkdir(parents=True, exist_ok=True)
        (sets / f"{part}.txt").write_text("".join(f"{Path(name).stem}\n" for name in pictures), encoding="utf-8")
        (sets / f"{data.classes[0]}_{part}.txt").write_text("x  1\n", encoding="utf-8")
    return root


def write_labelimg(root: Path, data: Data) -> Path:
    """Write what LabelImg writes, in a folder for each part: an XML file beside each image."""
    for part, pictures in data.parts.items():
        for name, picture in pictures.items():
            write_xml(place(root / part, name, picture).with_suffix(".xml"), picture)
    return root


def write_voc_folders(root: Path, data: Data) -> Path:
    """Write XML files in a folder of their own, with the same folders of parts as the images."""
    for part, pictures in data.parts.items():
        for name, picture in pictures.items():
            path = place(root / "images" / part, name, picture)
            write_xml(root / "annotations" / part / f"{path.stem}.xml", picture)
    return root


LAYOUTS: dict[str, Callable[[Path, Data], Path]] = {
    "yolo": write_yolo,
    "yolo, parts first": lambda root, data: write_yolo(root, data, images="{part}/images"),
    "yolo, polygons": lambda root, data: write_yolo(root, data, polygons=True),
    "yolo of Roboflow": write_roboflow_yolo,
    "yolo with lists": write_yolo_lists,
    "yolo without data.yaml": write_yolo_without_yaml,
    "coco": write_coco,
    "coco of Roboflow": write_roboflow_coco,
    "voc with image sets": write_voc_sets,
    "voc of LabelImg": write_labelimg,
    "voc in folders": write_voc_folders,
}


def place(folder: Path, name: str, picture: Picture) -> Path:
    """Copy a picture into a folder, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(picture.file, folder / name))


def write_yolo_label(image: Path, picture: Picture, classes: tuple[str, ...], *, polygons: bool = False) -> None:
    """Write the labels of an image into the text file of its name; none if it shows nothing."""
    if not picture.things:
        return
    lines = []
    width, height = picture.size
    for name, (left, top, right, bottom) in picture.things:
        numbers: tuple[float, ...] = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
        if polygons:  # a diamond
            middle = (left + right) / 2, (top + bottom) / 2
            numbers = (left, middle[1], middle[0], top, right, middle[1], middle[0], bottom)
        shares = [number / (height if index % 2 else width) for index, number in enumerate(numbers)]
        lines.append(" ".join([str(classes.index(name)), *(f"{share:.8f}" for share in shares)]))
    image.parent.mkdir(parents=True, exist_ok=True)
    image.with_suffix(".txt").write_text("\n".join(lines), encoding="utf-8")


def write_xml(path: Path, picture: Picture) -> None:
    """Write the XML file of an image, as LabelImg does."""
    objects = "".join(
        f"<object><name>{escape(name)}</name><difficult>0</difficult><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for name, (left, top, right, bottom) in picture.things
    )
    width, height = picture.size
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation><filename>old name.png</filename><source><database>Unknown</database></source>"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>{objects}</annotation>",
        encoding="utf-8",
    )


def coco_content(pictures: Mapping[str, Picture], classes: tuple[str, ...], supercategory: str = "") -> dict[str, Any]:
    """Return COCO's form of pictures, without the fields that some tools leave out."""
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": classes.index(name) + 1,
            "bbox": [left, top, right - left, bottom - top],
        }
        for number, (image, name, (left, top, right, bottom)) in enumerate(
            (image, *thing) for image, picture in enumerate(pictures.values()) for thing in picture.things
        )
    ]
    return {
        "images": [
            {"id": number, "file_name": name, "width": picture.size[0], "height": picture.size[1]}
            for number, (name, picture) in enumerate(pictures.items())
        ],
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, "supercategory": supercategory} for number, name in enumerate(classes, start=1)
        ],
    }


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def read_back(splits: Mapping[Any, Path]) -> dict[str, dict[str, tuple[tuple[str, Corners], ...]]]:
    """Return the objects of each image of each split, from COCO's files that were made of a data folder."""
    parts = {}
    for part, path in splits.items():
        content = json.loads(path.read_bytes())
        names = {category["id"]: category["name"] for category in content["categories"]}
        files = {image["id"]: Path(image["file_name"]).name for image in content["images"]}
        things: dict[str, list[tuple[str, Corners]]] = {name: [] for name in files.values()}
        for box in content["annotations"]:
            left, top, width, height = box["bbox"]
            corners = (round(left, 3), round(top, 3), round(left + width, 3), round(top + height, 3))
            things[files[box["image_id"]]].append((names[box["category_id"]], corners))
        parts[part] = {name: tuple(each) for name, each in things.items()}
    return parts
