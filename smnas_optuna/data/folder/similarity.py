"""Which images of a data set are nearly the same: copies, augmented copies, and neighbouring frames of a video."""

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from smnas_optuna.data.picture_file import THREADS

Thumbnails = npt.NDArray[np.float32]

_SIDE = 16
# Images that are decoded at an eighth of their size must still be larger than a thumbnail.
_SMALLEST_REDUCED_BYTES = 20_000
# Least correlation of the thumbnails of copies, and of neighbouring frames of a video, whose names say that they are.
_COPY, _NEIGHBOUR = 0.95, 0.7
# Standard deviation below which a thumbnail is of one colour, in grey levels, so that its correlation says nothing.
_FLAT = 2.0
# How many of its most similar images an image is compared with, and in how many directions of the largest variance.
_NEAREST, _DIRECTIONS = 4, 12

_AUGMENTED = re.compile(r"(.+)\.rf\.[0-9A-Za-z]{16,}$")  # Roboflow's copies of one image
_FRAME = re.compile(r"(.*?)(\d+)$")


def group_similar(images: Sequence[Path]) -> list[list[int]]:
    """Group images that are nearly the same, and return the indices of each group.

    An image belongs to a group if it is nearly the same as any image in it. So all frames of a video are one group if
    neighbouring frames are similar, however different its first and last frames are.

    Args:
        images: Paths of the images. One that cannot be read is similar to none.

    Returns:
        Groups in the order of their first images; most of them have one image.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        thumbnails = np.stack([*pool.map(_thumbnail, images)]) if images else np.empty((0, _SIDE**2), np.float32)
    pairs = {*_copies(thumbnails), *_neighbours(images, thumbnails), *_augmented(images)}
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    links = coo_array((np.ones(len(pairs)), (first, second)), shape=(len(images), len(images)))
    _, group_of = connected_components(links, directed=False)
    groups: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(group_of.tolist()):
        groups[group].append(index)
    return sorted(groups.values())


def _thumbnail(path: Path) -> Thumbnails:
    """Return a grey thumbnail with a mean of 0 and a length of 1, shape (256,); zeros if the image is of one colour."""
    try:
        is_small = os.path.getsize(path) < _SMALLEST_REDUCED_BYTES
    except OSError:
        is_small = True
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE if is_small else cv2.IMREAD_REDUCED_GRAYSCALE_8)
    if image is None:
        return np.zeros(_SIDE**2, np.float32)
    grey = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    grey -= grey.mean()
    if grey.std() < _FLAT:
        return np.zeros_like(grey)
    thumbnail: Thumbnails = grey / np.linalg.norm(grey)
    return thumbnail


def _copies(thumbnails: Thumbnails) -> Iterator[tuple[int, int]]:
    """Yield pairs of images whose thumbnails are nearly equal: each with its nearest ones, which connects all."""
    usable = np.flatnonzero(thumbnails.any(axis=1))
    if len(usable) < 2:
        return
    seen = thumbnails[usable]
    # A projection makes distances smaller, never larger. So what is near in full is near here, where a tree is fast.
    _, directions = np.linalg.eigh(np.cov(seen, rowvar=False))
    projected = seen @ directions[:, -_DIRECTIONS:]
    # The distance of two vectors of length 1 whose product is the correlation.
    limit = math.sqrt(2 - 2 * _COPY)
    _, found = KDTree(projected).query(projected, k=_NEAREST + 1, distance_upper_bound=limit)
    for index, others in enumerate(found):
        for other in others:
            if other not in (index, len(usable)) and seen[index] @ seen[other] >= _COPY:
                yield int(usable[index]), int(usable[other])


def _neighbours(images: Sequence[Path], thumbnails: Thumbnails) -> Iterator[tuple[int, int]]:
    """Yield pairs of similar images that follow each other in a folder by the numbers at the ends of their names."""
    numbered = []
    for index, image in enumerate(images):
        found = _FRAME.fullmatch(_AUGMENTED.sub(r"\1", image.stem))
        if found:
            numbered.append((image.parent, found[1], int(found[2]), index))
    for one, next_one in pairwise(sorted(numbered)):
        if one[:2] == next_one[:2] and thumbnails[one[-1]] @ thumbnails[next_one[-1]] >= _NEIGHBOUR:
            yield one[-1], next_one[-1]


def _augmented(images: Sequence[Path]) -> Iterator[tuple[int, int]]:
    """Yield pairs of images that Roboflow has made from the same one, by their names."""
    first: dict[str, int] = {}
    for index, image in enumerate(images):
        found = _AUGMENTED.fullmatch(image.stem)
        if found and first.setdefault(found[1], index) != index:
            yield first[found[1]], index
