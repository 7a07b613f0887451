"""The image files of a data set: whether they are there, can be opened, and are what their annotations say."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
from PIL import ExifTags, Image, UnidentifiedImageError

from smnas_optuna.data.datasets import LocatedSplit, absent_images
from smnas_optuna.data.inspection import Fault, Record, collect

Depth = Literal["name", "header", "pixels"]

_THREADS = 16  # they wait for the disk for the most part
_ON_THEIR_SIDE = (5, 6, 7, 8)  # EXIF orientations
_JPEG = ("JPEG", "MPO")


@dataclass(frozen=True)
class Picture:
    """An image file that is there.

    Args:
        length: Bytes of the file; None if it was not opened, or cannot be.
        size: Width and height in pixels as training sees it, turned as its EXIF says; None as before.
        is_turned: Whether that has turned it on its side.
        failure: Why training cannot open it.
        damage: What is wrong with it although training can.
    """

    length: int | None = None
    size: tuple[int, int] | None = None
    is_turned: bool = False
    failure: str | None = None
    damage: str | None = None


def look_at(path: Path, depth: Depth) -> Picture:
    """Look at an image file: no further than its name, at its header with format and size, or at all its pixels."""
    if depth == "name":
        return Picture()
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation) in _ON_THEIR_SIDE
            damage = _damage(image) if depth == "pixels" else None
            kind = image.format
        picture = Picture(path.stat().st_size, (height, width) if turned else (width, height), turned)
    except UnidentifiedImageError:
        return Picture(failure="not an image")
    except Exception as error:  # a decoder may raise anything
        return Picture(failure=str(error))
    # Training reads with OpenCV: it knows fewer formats, and of a damaged file it reads a JPEG only.
    if not cv2.haveImageReader(str(path)):
        return Picture(failure=f"{kind}, which OpenCV cannot read")
    return replace(picture, damage=damage) if kind in _JPEG or not damage else Picture(failure=damage)


def inspect_pictures(
    place: str, located: LocatedSplit, images: Sequence[Record], depth: Depth
) -> tuple[dict[Path, Picture], tuple[Fault, ...]]:
    """Look at a split's image files.

    Args:
        place: Names the split in faults.
        located: Where they are.
        images: Sound records of them.
        depth: How far into each to look.

    Returns:
        What is there, by absolute path, and all that is wrong.
    """
    folder = located.split.images
    if not folder.is_dir():
        return {}, (Fault(place, f"no folder of images {folder}", stops=True),)
    records = {image["file_name"]: image for image in images}
    absent = absent_images(folder, list(records))
    gone = set(absent)
    present = {name: Path(os.path.abspath(folder / name)) for name in records if name not in gone}
    with ThreadPoolExecutor(_THREADS) as pool:
        pictures = dict(zip(present, pool.map(partial(look_at, depth=depth), present.values()), strict=True))
    failures = [f"{name}: {picture.failure}" for name, picture in pictures.items() if picture.failure]
    damages = [f"{name}: {picture.damage}" for name, picture in pictures.items() if picture.damage]
    sizes = [text for name, picture in pictures.items() if (text := _other_size(records[name], picture))]
    faults = (
        *collect(place, f"images that are absent from {folder}", absent, stops=True),
        *collect(place, "images that cannot be opened", failures, stops=True),
        *collect(place, "damaged images, of which training reads what it can", damages, stops=False),
        *collect(place, "images of another size than their annotations say", sizes, stops=False),
    )
    return {present[name]: picture for name, picture in pictures.items()}, faults


def shared_pictures(train: Mapping[Path, Picture], val: Mapping[Path, Picture]) -> dict[Path, Path]:
    """Return the images of one split that the other has too: the same files, and those of the same content."""
    shared = {path: path for path in val if path in train}
    # Only files of the same length can be the same; of the others nothing is read.
    lengths = {picture.length for picture in train.values()} & {picture.length for picture in val.values()} - {None}
    ours, theirs = (
        [path for path, picture in pictures.items() if picture.length in lengths and path not in shared]
        for pictures in (val, train)
    )
    known = {digest: path for path, digest in _digests(theirs).items()}
    shared |= {path: known[digest] for path, digest in _digests(ours).items() if digest in known}
    return shared


def _damage(image: Image.Image) -> str | None:
    try:
        image.load()
    except Exception as error:  # a decoder may raise anything
        return str(error)
    return None


def _other_size(record: Record, picture: Picture) -> str | None:
    if picture.size in (None, (record["width"], record["height"])):
        return None
    turned = " as its EXIF turns it" if picture.is_turned else ""
    found, told = picture.size, (record["width"], record["height"])
    return f"{record['file_name']}: {found[0]}x{found[1]}{turned}, annotated as {told[0]:g}x{told[1]:g}"


def _digests(paths: Sequence[Path]) -> dict[Path, bytes]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(paths, pool.map(_digest, paths), strict=True))


def _digest(path: Path) -> bytes:
    return hashlib.blake2b(path.read_bytes()).digest()
