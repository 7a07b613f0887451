"""Inspects one image file: whether it can be opened, its size as training sees it, and damages."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import cv2
from PIL import ExifTags, Image, UnidentifiedImageError

Depth = Literal["name", "header", "pixels"]

THREADS: Final = 16
"""Threads that inspect images; more than cores, since they mostly wait for the disk."""

_ROTATED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_JPEG = ("JPEG", "MPO")


@dataclass(frozen=True)
class Picture:
    """An existing image file.

    Args:
        length: Size of the file in bytes; None if it was not or cannot be opened.
        size: Width and height in pixels after rotation by its EXIF data, as in training; None if it was not or cannot
            be opened.
        is_turned: Whether this rotation exchanges width and height.
        failure: Why training cannot open it; None if it can.
        damage: What is wrong with the file although training can open it; None if nothing is.
    """

    length: int | None = None
    size: tuple[int, int] | None = None
    is_turned: bool = False
    failure: str | None = None
    damage: str | None = None


def inspect_picture(path: Path, depth: Depth) -> Picture:
    """Inspect an image file.

    Args:
        path: Path of the file.
        depth: ``name`` does not open it, ``header`` reads format and size, ``pixels`` decodes it.
    """
    if depth == "name":
        return Picture()
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation) in _ROTATED
            damage = _damage(image) if depth == "pixels" else None
            kind = image.format
        picture = Picture(path.stat().st_size, (height, width) if turned else (width, height), turned)
    except UnidentifiedImageError:
        return Picture(failure="not an image")
    except Exception as error:  # a decoder may raise anything
        return Picture(failure=str(error))
    # Training reads with OpenCV, which supports fewer formats than Pillow, and of damaged files only JPEG.
    if not cv2.haveImageReader(str(path)):
        return Picture(failure=f"{kind}, which OpenCV cannot read")
    return replace(picture, damage=damage) if kind in _JPEG or not damage else Picture(failure=damage)


def _damage(image: Image.Image) -> str | None:
    try:
        image.load()
    except Exception as error:  # a decoder may raise anything
        return str(error)
    return None
