"""Checks the image files of a data set: whether they exist, can be opened, and have the annotated sizes."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from smnas_optuna.data.datasets import LocatedSplit, absent_images
from smnas_optuna.data.inspection import Fault, Record, collect
from smnas_optuna.data.picture_file import THREADS, Depth, Picture, inspect_picture


def inspect_pictures(
    place: str, located: LocatedSplit, images: Sequence[Record], depth: Depth
) -> tuple[dict[Path, Picture], tuple[Fault, ...]]:
    """Inspect the image files of a split.

    Args:
        place: Name of the split, for the faults.
        located: The split.
        images: Valid records of its images.
        depth: What to read of each file, see :func:`~smnas_optuna.data.picture_file.inspect_picture`.

    Returns:
        The existing files by absolute path, and everything that is wrong.
    """
    folder = located.split.images
    if not folder.is_dir():
        return {}, (Fault(place, f"no folder of images {folder}", stops=True),)
    records = {image["file_name"]: image for image in images}
    absent = absent_images(folder, list(records))
    absent_names = set(absent)
    present = {name: Path(os.path.abspath(folder / name)) for name in records if name not in absent_names}
    with ThreadPoolExecutor(THREADS) as pool:
        pictures = dict(zip(present, pool.map(partial(inspect_picture, depth=depth), present.values()), strict=True))
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
    """Return the validation images that are training images too: the same files, and files with the same content.

    Returns:
        The path of a training image by the path of the validation image.
    """
    shared = {path: path for path in val if path in train}
    # Files can only be equal if their lengths are; no others are read.
    lengths = {picture.length for picture in train.values()} & {picture.length for picture in val.values()} - {None}
    ours, theirs = (
        [path for path, picture in pictures.items() if picture.length in lengths and path not in shared]
        for pictures in (val, train)
    )
    known = {digest: path for path, digest in _digests(theirs).items()}
    shared |= {path: known[digest] for path, digest in _digests(ours).items() if digest in known}
    return shared


def _other_size(record: Record, picture: Picture) -> str | None:
    if picture.size in (None, (record["width"], record["height"])):
        return None
    turned = " as its EXIF turns it" if picture.is_turned else ""
    found, annotated = picture.size, (record["width"], record["height"])
    return f"{record['file_name']}: {found[0]}x{found[1]}{turned}, annotated as {annotated[0]:g}x{annotated[1]:g}"


def _digests(paths: Sequence[Path]) -> dict[Path, bytes]:
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(paths, pool.map(_digest, paths), strict=True))


def _digest(path: Path) -> bytes:
    return hashlib.blake2b(path.read_bytes()).digest()
