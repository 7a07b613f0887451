"""How training images are loaded and changed, as configs of transforms. Does not import torch.

No image becomes larger than the input size, so the memory that training is estimated to use does not depend on it.
"""

import math
from typing import Any

from smnas_optuna.parts.architecture import InputSize
from smnas_optuna.recipe.settings import Training

Transform = dict[str, Any]

LOAD: Transform = {"type": "LoadImageFromFile"}
ANNOTATE: Transform = {"type": "LoadAnnotations", "with_bbox": True}

# What follows on mosaic and mixup is RTMDet's.
_GRAY = 114.0
_MOSAIC_SCALES = (0.5, 2.0)
_CACHED_IMAGES = 20
# Share of the epochs, at the end, that are trained without mosaic and mixup: 20 of RTMDet's 300.
_PLAIN_SHARE = 1 / 15


def train_pipeline(training: Training, size: InputSize) -> list[Transform]:
    """Return the transforms of a training's images, until the epochs at its end."""
    return _pipeline(training, size, mosaic=training.mosaic, mixup=training.mixup)


def plain_epochs_hook(training: Training, size: InputSize) -> list[Transform]:
    """Return the config of a hook that leaves out mosaic and mixup in the epochs at the end; none without them."""
    if not training.mosaic and not training.mixup:
        return []
    plain = training.plain_epochs
    if plain is None:
        plain = math.ceil(_PLAIN_SHARE * training.epochs)
    return [
        {
            "type": "PipelineSwitchHook",
            "switch_epoch": max(0, training.epochs - plain),
            "switch_pipeline": _pipeline(training, size, mosaic=False, mixup=False),
        }
    ]


def _pipeline(training: Training, size: InputSize, *, mosaic: bool, mixup: bool) -> list[Transform]:
    scale = (size.width, size.height)
    transforms = [LOAD, ANNOTATE, *(_mosaic(scale) if mosaic else _resize(training.scale_jitter, scale))]
    if training.photometric:
        transforms.append({"type": "PhotoMetricDistortion"})
    transforms.append({"type": "RandomFlip", "prob": training.flip})
    if mosaic:
        transforms.append({"type": "Pad", "size": scale, "pad_val": {"img": (_GRAY,) * 3}})
    if mixup:
        cache = {"max_cached_images": _CACHED_IMAGES, "random_pop": True}
        transforms.append(
            {"type": "CachedMixUp", "img_scale": scale, "ratio_range": (1.0, 1.0), "pad_val": _GRAY, **cache}
        )
    return [*transforms, {"type": "PackDetInputs"}]


def _resize(jitter: tuple[float, float], scale: tuple[int, int]) -> list[Transform]:
    """Return transforms that show an image at a random scale: a part of it, or all of it smaller."""
    smallest, largest = jitter
    part = [{"type": "RandomPart", "smallest": 1 / largest}]
    smaller = {"type": "RandomResize", "scale": scale, "ratio_range": (smallest, 1.0), "keep_ratio": True}
    whole = {"type": "Resize", "scale": scale, "keep_ratio": True}
    return [*(part if largest > 1 else []), smaller if smallest < 1 else whole]


def _mosaic(scale: tuple[int, int]) -> list[Transform]:
    """Return transforms that show a part of four images beside each other."""
    width, height = scale
    return [
        {"type": "CachedMosaic", "img_scale": scale, "pad_val": _GRAY, "max_cached_images": 2 * _CACHED_IMAGES},
        {
            "type": "RandomResize",
            "scale": (2 * width, 2 * height),
            "ratio_range": _MOSAIC_SCALES,
            "keep_ratio": True,
        },
        {"type": "RandomCrop", "crop_size": scale},
    ]
