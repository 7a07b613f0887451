"""Splits a validation part off a data folder that has none, and writes it to a file that the user can edit."""

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from smnas_optuna.data.folder.similarity import group_similar
from smnas_optuna.errors import UserError

SHARE = 0.2
"""Share of the images that are validated on, unless that is more than ``LARGEST``."""
LARGEST = 5_000
"""Most images that are validated on, as many as COCO has, which tell detectors apart that differ by a point."""

_HEADING = """\
# Images of {root} to validate on, one per line; all others are trained on.
# Edit it before the search. Copies of an image, and frames of one video, belong on the same side.
"""


def split_validation(images: Sequence[Path], classes: Sequence[frozenset[str]]) -> list[int]:
    """Choose the images to validate on, and return their indices.

    Each class has about the same share of its images there, the rarest classes first (iterative stratification,
    Sechidis et al. 2011). Images that are nearly the same stay together; where these are too many, such as the frames
    of one long video, they are divided into consecutive pieces. The choice depends only on names and content.

    Args:
        images: Paths of all images, at least two.
        classes: The classes of the objects in each image.
    """
    wanted = min(max(1, round(SHARE * len(images))), LARGEST)
    groups = [piece for group in group_similar(images) for piece in _pieces(group, images, wanted)]
    # In an order that has nothing to do with the folder's, which often says when or where an image was taken.
    groups.sort(key=lambda group: hashlib.sha256(images[group[0]].name.encode()).digest())
    share = wanted / len(images)
    # An image without objects counts as one of a class of its own.
    numbers = [Counter(name for index in group for name in classes[index] or {""}) for group in groups]
    total: Counter[str] = Counter()
    for each in numbers:
        total += each
    missing = {name: number * share for name, number in total.items()}
    chosen: list[int] = []
    undecided = dict(enumerate(groups))
    for name in sorted(total, key=lambda name: (total[name], name)):
        for number in [number for number in undecided if name in numbers[number]]:
            group = undecided.pop(number)
            # At least half of what the group has of the class is missing, and not more than is wanted in all.
            if missing[name] < numbers[number][name] / 2 or len(chosen) + len(group) > wanted:
                continue
            chosen += group
            for other, amount in numbers[number].items():
                missing[other] -= amount
    smallest: list[int] = min(groups, key=len)
    return sorted(chosen or smallest)


def _pieces(group: list[int], images: Sequence[Path], wanted: int) -> list[list[int]]:
    """Divide a group that is larger than the validation part into consecutive pieces that are not."""
    if len(group) <= wanted:
        return [group]
    ordered = sorted(group, key=lambda index: images[index])
    return [ordered[start : start + wanted] for start in range(0, len(ordered), wanted)]


def write_split(path: Path, root: Path, names: Sequence[str]) -> None:
    """Write the names of the images to validate on.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when complete, so that a run that is killed here leaves no shorter list.
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix="unfinished-", delete=False, encoding="utf-8"
    ) as unfinished:
        unfinished.write(_HEADING.format(root=root) + "".join(f"{name}\n" for name in names))
    os.replace(unfinished.name, path)


def read_split(path: Path, known: Sequence[str]) -> list[str]:
    """Read the names of the images to validate on.

    Args:
        path: The file.
        known: The names of all images of the data folder.

    Raises:
        UserError: The file cannot be read, or lists no image, all of them, or one that the folder does not have.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"dataset.validation: {path}: cannot be read: {error}") from None
    present = set(known)
    chosen: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        if name not in present:
            raise UserError(f"dataset.validation: {path}:{number}: no image {name!r} with labels in the data folder")
        chosen[name] = None
    if not chosen or len(chosen) == len(present):
        which = "no image" if not chosen else "all images"
        raise UserError(f"dataset.validation: {path}: lists {which}; expected some to validate on and some to train on")
    return list(chosen)
