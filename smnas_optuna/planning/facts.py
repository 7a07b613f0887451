"""What a plan depends on, besides the machine: properties of the data, and how fast detectors train."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class DataFacts:
    """Properties of a data set.

    Args:
        train_images: Number of training images.
        val_images: Number of validation images.
        classes: Number of classes.
        width: Width of the most frequent size of images, in pixels.
        height: Its height.
        small_side: Side in pixels that a tenth of the boxes is below; the side is the root of width times height.
        median_side: Median side of boxes in pixels.
        crowding: Number of boxes that a hundredth of the images exceeds.
    """

    train_images: int
    val_images: int
    classes: int
    width: int
    height: int
    small_side: float
    median_side: float
    crowding: int

    @property
    def long_side(self) -> int:
        """Longer side of the images, in pixels."""
        return max(self.width, self.height)


@dataclass(frozen=True)
class Speed:
    """How fast detectors train, measured on the machine.

    Args:
        seconds: Seconds per training image, by the text of each architecture that was measured.
    """

    seconds: Mapping[str, float]

    def per_image(self, pixels: float) -> float:
        """Return the seconds that a detector needs on average for a training image of so many pixels.

        The time of each measured detector is proportional to the number of pixels.
        """
        sizes = [text.partition(" ")[0].split("x") for text in self.seconds]
        shares = [
            seconds / (int(width) * int(height))
            for (width, height), seconds in zip(sizes, self.seconds.values(), strict=True)
        ]
        return pixels * float(np.mean(shares))


def data_facts(train: Path, val: Path) -> DataFacts:
    """Read the properties of a data set from its COCO json files, which must be valid.

    Args:
        train: File of the training split.
        val: File of the validation split.
    """
    content = json.loads(train.read_bytes())
    images, boxes = content["images"], content["annotations"]
    (width, height), _ = Counter((image["width"], image["height"]) for image in images).most_common(1)[0]
    size_of = {image["id"]: max(image["width"], image["height"]) for image in images}
    long_side = max(width, height)
    # As if all images had the most frequent size, since images are scaled to the input size.
    sides = [
        (box["bbox"][2] * box["bbox"][3]) ** 0.5 * long_side / size_of[box["image_id"]]
        for box in boxes
        if min(box["bbox"][2:]) > 0
    ]
    counts = Counter(box["image_id"] for box in boxes)
    return DataFacts(
        len(images),
        len(json.loads(val.read_bytes())["images"]),
        len(content["categories"]),
        int(width),
        int(height),
        float(np.quantile(sides, 0.1)),
        float(np.median(sides)),
        int(np.quantile([counts[image["id"]] for image in images], 0.99)),
    )
