"""Layers that MMDetection's registry lacks: group norm of any width, and a MobileNetV2 that stops where it is used.

A config that names them says ``custom_imports = dict(imports=["smnas_optuna.detector.layers"])``; the import also
provides mmcv's operators where they are not compiled.
"""

import math
from typing import Any

from mmdet.registry import MODELS
from torch import nn

from smnas_optuna.detector import mmcv_ops

mmcv_ops.install()
from mmdet.models.backbones import MobileNetV2  # noqa: E402  # imports mmcv.ops


@MODELS.register_module()
class DividingGroupNorm(nn.GroupNorm):
    """Group normalisation with the most groups, up to ``num_groups``, that divide the channels.

    torch refuses 32 groups of 48 or 16 channels, which narrow networks and MobileNetV2 have.

    Args:
        num_features: Channels.
        num_groups: Groups at the most; 32 in Wu & He (2018).
        eps: Added to the variance.
        affine: Learn a scale and a shift per channel.
    """

    def __init__(self, num_features: int, num_groups: int = 32, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(math.gcd(num_groups, num_features), num_features, eps, affine)


@MODELS.register_module()
class TruncatedMobileNetV2(MobileNetV2):  # type: ignore[misc]  # mmdet is untyped
    """MobileNetV2 without the layers behind the last one in ``out_indices``, which would cost time for nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in self.layers[max(self.out_indices) + 1 :]:
            delattr(self, name)
        del self.layers[max(self.out_indices) + 1 :]
