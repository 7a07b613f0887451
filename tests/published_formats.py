"""Data sets in the layouts and formats in which Pascal VOC and BDD100K are published, written from known boxes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Thing:
    """An object: its class, its box as the format has it, and whether it counts."""

    name: str
    corners: Corners
    difficult: bool = False


def write_image(path: Path, things: Sequence[Thing], size: tuple[int, int] = (64, 48)) -> None:
    """Write a picture of so many pixels, with its objects as dark rectangles."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.full((size[1], size[0], 3), 210, dtype=np.uint8)
    for thing in things:
        left, top, right, bottom = (int(corner) for corner in thing.corners)
        cv2.rectangle(picture, (left - 1, top - 1), (right - 1, bottom - 1), (40, 60, 30), -1)
    cv2.imwrite(str(path), picture)


def voc_xml(name: str, things: Sequence[Thing], size: tuple[int, int] = (64, 48), folder: str = "VOC2007") -> str:
    objects = "".join(
        f"""\t<object>
\t\t<name>{thing.name}</name>
\t\t<pose>Left</pose>
\t\t<truncated>1</truncated>
\t\t<difficult>{int(thing.difficult)}</difficult>
\t\t<bndbox>
\t\t\t<xmin>{thing.corners[0]}</xmin>
\t\t\t<ymin>{thing.corners[1]}</ymin>
\t\t\t<xmax>{thing.corners[2]}</xmax>
\t\t\t<ymax>{thing.corners[3]}</ymax>
\t\t</bndbox>
\t\t<part>
\t\t\t<name>head</name>
\t\t\t<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>4</xmax><ymax>4</ymax></bndbox>
\t\t</part>
\t</object>
"""
        for thing in things
    )
    return f"""<annotation>
\t<folder>{folder}</folder>
\t<filename>{name}.jpg</filename>
\t<source>
\t\t<database>The {folder} Database</database>
\t\t<annotation>PASCAL {folder}</annotation>
\t\t<image>flickr</image>
\t</source>
\t<size>
\t\t<width>{size[0]}</width>
\t\t<height>{size[1]}</height>
\t\t<depth>3</depth>
\t</size>
\t<segmented>0</segmented>
{objects}</annotation>
"""


def write_voc(
    root: Path, image_set: str, images: Mapping[str, Sequence[Thing]], size: tuple[int, int] = (64, 48)
) -> None:
    """Write an image set such as ``VOC2007/trainval`` in the layout of VOCdevkit."""
    folder, name = image_set.split("/")
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder / part).mkdir(parents=True, exist_ok=True)
    for image, things in images.items():
        xml = voc_xml(image, things, size, folder)
        (root / folder / "Annotations" / f"{image}.xml").write_text(xml, encoding="utf-8")
        write_image(root / folder / "JPEGImages" / f"{image}.jpg", things, size)
    (root / folder / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{image}\n" for image in images))


def bdd_frames_of_2018(images: Mapping[str, Sequence[Thing]]) -> list[dict[str, Any]]:
    """Return frames as ``bdd100k_labels_images_*.json`` has them, with lanes and drivable areas."""
    attributes = {"weather": "clear", "scene": "city street", "timeofday": "daytime"}
    drivable = {
        "category": "drivable area",
        "attributes": {"areaType": "direct"},
        "manualShape": True,
        "manualAttributes": True,
        "poly2d": [{"vertices": [[1, 2], [30, 40], [5, 6]], "types": "LLL", "closed": True}],
        "id": 900,
    }
    lane = {
        "category": "lane",
        "attributes": {"laneDirection": "parallel", "laneStyle": "solid", "laneType": "road curb"},
        "manualShape": True,
        "manualAttributes": True,
        "poly2d": [{"vertices": [[1, 2], [30, 40]], "types": "LL", "closed": False}],
        "id": 901,
    }
    return [
        {
            "name": name,
            "attributes": attributes,
            "timestamp": 10000,
            "labels": [
                {
                    "category": thing.name,
                    "attributes": {"occluded": False, "truncated": False, "trafficLightColor": "none"},
                    "manualShape": True,
                    "manualAttributes": True,
                    "box2d": dict(zip(("x1", "y1", "x2", "y2"), thing.corners, strict=True)),
                    "id": number,
                }
                for number, thing in enumerate(things)
            ]
            + [drivable, lane],
        }
        for name, things in images.items()
    ]


def bdd_frames_of_2020(images: Mapping[str, Sequence[Thing] | None]) -> list[dict[str, Any]]:
    """Return frames as ``det_20/det_*.json`` has them; those of None are without labels."""
    return [
        {
            "name": name,
            "attributes": {"weather": "clear", "timeofday": "daytime", "scene": "city street"},
            "timestamp": 10000,
            **(
                {}
                if things is None
                else {
                    "labels": [
                        {
                            "id": str(number),
                            "attributes": {
                                "occluded": False,
                                "truncated": False,
                                "trafficLightColor": "NA",
                                **({"crowd": True} if thing.difficult else {}),
                            },
                            "category": thing.name,
                            "box2d": dict(zip(("x1", "y1", "x2", "y2"), thing.corners, strict=True)),
                        }
                        for number, thing in enumerate(things)
                    ]
                }
            ),
        }
        for name, things in images.items()
    ]


def write_bdd(root: Path, labels: str, images: str, frames: Sequence[Mapping[str, Any]]) -> None:
    """Write a file of labels and its pictures, 1280x720 pixels, below BDD100K's root."""
    (root / labels).parent.mkdir(parents=True, exist_ok=True)
    (root / labels).write_text(json.dumps(frames), encoding="utf-8")
    for frame in frames:
        write_image(root / images / frame["name"], [], (1280, 720))
