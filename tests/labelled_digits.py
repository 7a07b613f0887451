"""Scikit-learn's handwritten digits as a folder of labelled images, as torchvision's ImageFolder has them."""

from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits

CLASSES = ("digit 0", "digit 1", "digit 2", "digit 3")
TRAIN_IMAGES, VAL_IMAGES = 400, 200


def make_labelled_digits(folder: Path) -> Path:
    """Write four digits, scaled from 8 to 32 pixels, with a folder for each class, and return the folder."""
    digits = load_digits(n_class=len(CLASSES))
    for number in range(TRAIN_IMAGES + VAL_IMAGES):
        split = "train" if number < TRAIN_IMAGES else "val"
        image = (digits.images[number] * 15.9375).astype(np.uint8)
        path = folder / split / CLASSES[digits.target[number]] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.resize(image, (32, 32), interpolation=cv2.INTER_CUBIC))
    return folder
