"""Layers that MMDetection's registry lacks.

Group norm of any width, a MobileNetV2 that stops where it is used, guided anchoring that may find nothing, RPNs with
normalisation, and region features in mixed precision. Searched backbones are in ``backbone.py``.

A config that names any of them says ``custom_imports = dict(imports=["smnas_optuna.detector.layers"])``; the import
also provides mmcv's operators where they are not compiled.
"""

import math
import sys
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from smnas_optuna.detector import backbone, mmcv_ops  # noqa: F401  # registers searched backbones

mmcv_ops.install()
from mmdet.models.backbones import MobileNetV2  # noqa: E402  # imports mmcv.ops
from mmdet.models.dense_heads import GARPNHead, RPNHead  # noqa: E402
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor  # noqa: E402


@MODELS.register_module()
class DividingGroupNorm(nn.GroupNorm):
    """Group normalisation whose groups divide the channels and hold two at least.

    torch refuses 32 groups of 48 or 16 channels, which narrow networks and MobileNetV2 have. Groups of one channel
    would be instance normalisation, which Wu & He (2018, Table 3) found to be much worse, and which sees nothing on a
    map of one pixel. Two channels are what the groups of a ResNet's narrowest layers have.

    Args:
        num_features: Channels.
        num_groups: Groups at the most; 32 in Wu & He (2018).
        eps: Added to the variance.
        affine: Learn a scale and a shift per channel.
    """

    def __init__(self, num_features: int, num_groups: int = 32, eps: float = 1e-5, affine: bool = True) -> None:
        groups = math.gcd(num_groups, num_features)
        super().__init__(max(1, groups // 2) if groups == num_features else groups, num_features, eps, affine)


@MODELS.register_module()
class TruncatedMobileNetV2(MobileNetV2):  # type: ignore[misc]  # mmdet is untyped
    """MobileNetV2 without the layers behind the last one in ``out_indices``, which would cost time for nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in self.layers[max(self.out_indices) + 1 :]:
            delattr(self, name)
        del self.layers[max(self.out_indices) + 1 :]


class _ExactProposals:
    """Computes an RPN's proposals in float32, in mixed precision, too.

    MMDetection's computes them in the precision of its layers. Half precision rounds coordinates above 2048 to two
    pixels, and for non-maximum suppression the boxes of each level are moved beyond those of the level before.
    """

    def predict_by_feat(self, *outputs: list[Tensor] | None, **others: Any) -> list[InstanceData]:
        exact = [
            None if levels is None else [level.to(torch.promote_types(level.dtype, torch.float32)) for level in levels]
            for levels in outputs
        ]
        found: list[InstanceData] = super().predict_by_feat(*exact, **others)  # type: ignore[misc]  # of the head
        return found


@MODELS.register_module()
class ExactRPNHead(_ExactProposals, RPNHead):  # type: ignore[misc]  # mmdet is untyped
    """RPN whose proposals are computed in float32, in mixed precision, too."""


@MODELS.register_module()
class LenientGARPNHead(_ExactProposals, GARPNHead):  # type: ignore[misc]  # as above
    """Guided anchoring that proposes nothing where no location of an image is likely enough.

    MMDetection's raises a RuntimeError then (its issue 1041), which would fail a whole evaluation for one empty image.
    It also takes a batch of more than 32 images only if 32 divides it; here it may have any size.
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        # Images per call of the kernel; mmcv takes the whole batch if it is smaller.
        self.feature_adaption.conv_adaption.im2col_step = sys.maxsize

    def _predict_by_feat_single(
        self, *, cls_scores: list[Tensor], mlvl_masks: list[Tensor], **others: Any
    ) -> InstanceData:
        if any(mask.any() for mask in mlvl_masks):
            return super()._predict_by_feat_single(cls_scores=cls_scores, mlvl_masks=mlvl_masks, **others)
        scores = cls_scores[0].new_zeros(0)
        return InstanceData(bboxes=scores.new_zeros(0, 4), scores=scores, labels=scores.long())


class _NormalizedConvolution:
    """Puts a convolution with normalisation in the place of an RPN's first one; the ReLU after it is the head's.

    Args:
        conv_cfg: Kind of convolution; None for a plain one.
        norm_cfg: Kind of normalisation.
        settings: Those of the head.
    """

    in_channels: int
    feat_channels: int

    def __init__(self, *, conv_cfg: dict[str, Any] | None, norm_cfg: dict[str, Any], **settings: Any) -> None:
        self._layer = {"conv_cfg": conv_cfg, "norm_cfg": norm_cfg}
        super().__init__(**settings)

    def _init_layers(self) -> None:
        super()._init_layers()  # type: ignore[misc]  # of the head that this is mixed into
        self.rpn_conv = ConvModule(self.in_channels, self.feat_channels, 3, padding=1, act_cfg=None, **self._layer)


@MODELS.register_module()
class NormalizedRPNHead(_NormalizedConvolution, ExactRPNHead):
    """RPN with a normalised convolution before its predictions; MMDetection's has no choice of layers.

    What trains detectors from scratch is group normalisation with standardised weights (SM-NAS, section 3.3); an RPN
    without them is the one part between the backbone and the predictions that would be left out.
    """


@MODELS.register_module()
class NormalizedGARPNHead(_NormalizedConvolution, LenientGARPNHead):
    """Guided anchoring with normalisation; see :class:`NormalizedRPNHead`."""


@MODELS.register_module()
class ExactRoIExtractor(SingleRoIExtractor):  # type: ignore[misc]  # as above
    """Cuts regions out of a pyramid's levels, in mixed precision, too.

    MMDetection's casts regions to the features' half precision before it chooses their levels. The area of a region of
    more than 256x256 pixels overflows then, and coordinates above 1024 are rounded to whole pixels.
    """

    def forward(self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Return the features of regions; see SingleRoIExtractor."""
        exact = torch.promote_types(feats[0].dtype, torch.float32)
        found: Tensor = super().forward(tuple(level.to(exact) for level in feats), rois, roi_scale_factor)
        return found.to(feats[0].dtype)
