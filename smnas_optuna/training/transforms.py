"""Transforms of training images that MMDetection lacks, registered in its registry."""

import numpy as np
from mmcv.transforms.utils import cache_randomness
from mmdet.datasets.transforms import RandomCrop
from mmdet.registry import TRANSFORMS


@TRANSFORMS.register_module()
class RandomPart(RandomCrop):  # type: ignore[misc]  # mmdet is untyped
    """Crops a random part of an image that has the image's shape, with at least one object.

    Args:
        smallest: Smallest share of the sides that is kept, above 0 to 1.
    """

    def __init__(self, smallest: float) -> None:
        super().__init__(crop_size=(smallest, smallest), crop_type="relative")

    @cache_randomness  # type: ignore[untyped-decorator]  # mmcv is untyped
    def _get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        height, width = image_size
        share = np.random.uniform(self.crop_size[0], 1.0)
        return round(share * height), round(share * width)
