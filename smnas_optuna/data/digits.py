"""Demo data: synthetic scenes of scikit-learn's bundled handwritten digits, in COCO format.

The digits are real (1,797 of them, 8x8 pixels; Alpaydin & Kaynak 1998). The scenes are synthetic: digits of random size
and colour, some overlapping a little, on random backgrounds. Training and validation scenes show different digits.
Nothing is downloaded, and equal arguments give equal scenes.
"""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from smnas_optuna.data.cache import cache_folder

Image = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]

# Part of the cache folder's name: increase it with every change to the scenes, so that old ones are not used.
_VERSION = 1
_DIGITS_PER_SCENE = (2, 6)
_SMALLEST, _LARGEST = 0.25, 0.6  # side of a digit, as a share of the scene's shorter side
_MOST_OVERLAP = 0.1  # intersection over the smaller box


def make_digits(classes: int, train_images: int, val_images: int, *, width: int, height: int) -> Path:
    """Generate the scenes unless the cache has them already, and return their folder.

    Args:
        classes: The digits 0 to ``classes - 1`` are used.
        train_images: Number of training scenes.
        val_images: Number of validation scenes.
        width: Width of a scene in pixels.
        height: Height of a scene in pixels.

    Returns:
        A folder with ``train.json`` and ``val.json`` in COCO format and the PNG images in ``train/`` and ``val/``.

    Raises:
        OSError: The cache folder cannot be written.
    """
    arguments = f"{_VERSION} {classes} {train_images} {val_images} {width} {height}"
    folder = cache_folder() / f"digits-{hashlib.sha256(arguments.encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when complete, so that a run that is killed here leaves no incomplete folder in the cache.
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=folder.parent))
    data = load_digits()
    for name, parity, scenes in (("train", 0, train_images), ("val", 1, val_images)):
        own = (np.arange(len(data.target)) % 2 == parity) & (data.target < classes)
        _make_split(unfinished, name, scenes, data.images[own], data.target[own], (width, height), seed=parity)
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(unfinished)  # another process was faster
    return folder


def _make_split(
    folder: Path,
    name: str,
    scenes: int,
    digits: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    size: tuple[int, int],
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    (folder / name).mkdir()
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for image_id in range(1, scenes + 1):
        canvas, placed = _compose(random, digits, labels, size)
        file_name = f"{image_id:06d}.png"
        cv2.imwrite(str(folder / name / file_name), canvas)
        images.append({"id": image_id, "file_name": file_name, "width": size[0], "height": size[1]})
        for label, (x, y, w, h) in placed:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": int(label), "name": str(label)} for label in np.unique(labels)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def _compose(
    random: np.random.Generator,
    digits: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    size: tuple[int, int],
) -> tuple[npt.NDArray[np.uint8], list[tuple[int, Box]]]:
    """Return one scene, height x width x 3 in BGR, and its labelled boxes (x, y, width, height) in pixels."""
    width, height = size
    # A background that varies smoothly in colour, with grain.
    coarse = random.uniform(90, 230, (3, 4, 3)).astype(np.float32)
    canvas: Image = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    canvas += random.normal(0, 6, canvas.shape).astype(np.float32)
    placed: list[tuple[int, Box]] = []
    for _ in range(random.integers(_DIGITS_PER_SCENE[0], _DIGITS_PER_SCENE[1] + 1)):
        index = int(random.integers(len(labels)))
        side = int(min(size) * random.uniform(_SMALLEST, _LARGEST))
        mask = _mask(digits[index], side)
        mask_height, mask_width = mask.shape
        x = int(random.integers(0, width - mask_width + 1))
        y = int(random.integers(0, height - mask_height + 1))
        box = (x, y, mask_width, mask_height)
        ink = random.uniform(0, 70, 3)
        if any(_overlap(box, other) > _MOST_OVERLAP for _, other in placed):
            continue
        region = canvas[y : y + mask_height, x : x + mask_width]
        region += mask[..., None] * (ink.astype(np.float32) - region)
        placed.append((int(labels[index]), box))
    return np.clip(canvas, 0, 255).astype(np.uint8), placed


def _mask(digit: npt.NDArray[np.float64], side: int) -> Image:
    """Return the opacity of a digit's pixels, 0 to 1, scaled to ``side`` pixels and cropped to the digit."""
    grown = cv2.resize((digit / 16).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    ink: Image = np.clip(grown * 1.3 - 0.15, 0, 1).astype(np.float32)
    rows, columns = np.nonzero(ink.max(1) > 0.2)[0], np.nonzero(ink.max(0) > 0.2)[0]
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _overlap(one: Box, other: Box) -> float:
    across = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    down = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(across, 0) * max(down, 0) / min(one[2] * one[3], other[2] * other[3])
