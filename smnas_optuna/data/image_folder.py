"""Checks labelled images in the layout of torchvision's ImageFolder: ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``."""

import os
from pathlib import Path

from smnas_optuna.errors import UserError

# The suffixes that torchvision's ImageFolder accepts.
_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def check_image_folder(folder: Path) -> tuple[str, ...]:
    """Return the classes of a folder of labelled images, in the order of their labels; images are not opened.

    Raises:
        UserError: The folder or a split is missing, there are fewer than two classes, the splits have different
            classes, or a class has no image.
    """
    if not folder.is_dir():
        raise UserError(f"--data {folder}: no such folder; expected one with train/CLASS/*.jpg and val/CLASS/*.jpg")
    train, val = (_classes(folder / split) for split in ("train", "val"))
    if len(train) < 2:
        raise UserError(f"--data {folder / 'train'}: {len(train)} classes; expected a folder for each of two or more")
    different = sorted(set(train) ^ set(val))
    if different:
        name, only = different[0], "train" if different[0] in train else "val"
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise UserError(
            f"--data {folder}: only {only}/ has the class {name!r}{more}; expected the same in train/, val/"
        )
    for split in ("train", "val"):
        for name in train:
            if not _has_image(folder / split / name):
                raise UserError(f"--data {folder / split / name}: no image; expected some of {', '.join(_SUFFIXES)}")
    return train


def _classes(split: Path) -> tuple[str, ...]:
    if not split.is_dir():
        raise UserError(f"--data {split}: no such folder; expected it to have a folder of images for each class")
    return tuple(sorted(entry.name for entry in os.scandir(split) if entry.is_dir()))


def _has_image(folder: Path) -> bool:
    walk = os.walk(folder, followlinks=True)
    return any(name.lower().endswith(_SUFFIXES) for _, _, names in walk for name in names)
