"""Layers that MMDetection's registry lacks.

They are group normalisation of any width, backbones without unused layers, guided anchoring that may propose nothing,
RPNs with normalisation, and region features in mixed precision. Searched backbones are in ``backbone.py``, those of
timm in ``timm_backbone.py``.

Configs that use them need ``custom_imports = dict(imports=["smnas_optuna.detector.layers"])``; the import also provides
mmcv's operators if they are not compiled.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from smnas_optuna.detector import backbone, mmcv_ops, timm_backbone  # noqa: F401  # registers backbones

mmcv_ops.install()
from mmdet.models.backbones import CSPNeXt, MobileNetV2  # noqa: E402  # imports mmcv.ops
from mmdet.models.dense_heads import GARPNHead, RPNHead  # noqa: E402
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor  # noqa: E402


@MODELS.register_module()
class DividingGroupNorm(nn.GroupNorm):
    """Group normalisation with groups of at least two channels, whose number divides the channels.

    torch refuses to divide 48 or 16 channels, which narrow networks and MobileNetV2 have, into 32 groups. Groups of one
    channel would be instance normalisation, which Wu & He (2018, Table 3) found to be much worse, and which makes every
    map of one pixel zero. The groups of a ResNet's narrowest layers have two channels.

    Args:
        num_features: Number of channels.
        num_groups: Largest number of groups; 32 in Wu & He (2018).
        eps: Added to the variance.
        affine: Learn a scale and a shift per channel.
    """

    def __init__(self, num_features: int, num_groups: int = 32, eps: float = 1e-5, affine: bool = True) -> None:
        groups = math.gcd(num_groups, num_features)
        super().__init__(max(1, groups // 2) if groups == num_features else groups, num_features, eps, affine)


class _WithoutUnusedLayers:
    """Removes the layers of a backbone after the last one in ``out_indices``, which would only take time."""

    layers: list[str]
    out_indices: Sequence[int]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in self.layers[max(self.out_indices) + 1 :]:
            delattr(self, name)
        del self.layers[max(self.out_indices) + 1 :]


@MODELS.register_module()
class TruncatedMobileNetV2(_WithoutUnusedLayers, MobileNetV2):  # type: ignore[misc]  # mmdet is untyped
    """MobileNetV2 without the layers after the last one in ``out_indices``."""


@MODELS.register_module()
class TruncatedCSPNeXt(_WithoutUnusedLayers, CSPNeXt):  # type: ignore[misc]  # as above
    """CSPNeXt without the stages after the last one in ``out_indices``."""


class _ExactProposals:
    """Makes an RPN compute its proposals in float32 even in mixed precision.

    MMDetection's RPNs compute them in the precision of their layers. Half precision rounds coordinates above 2048 to
    two pixels, and non-maximum suppression shifts the boxes of each level to even larger coordinates.
    """

    def predict_by_feat(self, *outputs: list[Tensor] | None, **others: Any) -> list[InstanceData]:
        exact = [
            None if levels is None else [level.to(torch.promote_types(level.dtype, torch.float32)) for level in levels]
            for levels in outputs
        ]
        proposals: list[InstanceData] = super().predict_by_feat(*exact, **others)  # type: ignore[misc]  # the head's
        return proposals


@MODELS.register_module()
class ExactRPNHead(_ExactProposals, RPNHead):  # type: ignore[misc]  # mmdet is untyped
    """RPN that computes its proposals in float32 even in mixed precision."""


@MODELS.register_module()
class LenientGARPNHead(_ExactProposals, GARPNHead):  # type: ignore[misc]  # as above
    """Guided anchoring that proposes nothing if no location of an image has a sufficient score.

    MMDetection's own head raises a RuntimeError then (its issue 1041), so that one empty image would fail a whole
    evaluation. It also accepts batches of more than 32 images only if 32 divides their size; this head accepts any.
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        # Number of images per call of the kernel; mmcv uses the whole batch if it is smaller.
        self.feature_adaption.conv_adaption.im2col_step = sys.maxsize

    def _predict_by_feat_single(
        self, *, cls_scores: list[Tensor], mlvl_masks: list[Tensor], **others: Any
    ) -> InstanceData:
        if any(mask.any() for mask in mlvl_masks):
            return super()._predict_by_feat_single(cls_scores=cls_scores, mlvl_masks=mlvl_masks, **others)
        scores = cls_scores[0].new_zeros(0)
        return InstanceData(bboxes=scores.new_zeros(0, 4), scores=scores, labels=scores.long())


class _NormalizedConvolution:
    """Replaces the first convolution of an RPN by one with normalisation; the head itself applies the ReLU.

    Args:
        conv_cfg: Config of the convolution; None for a plain one.
        norm_cfg: Config of the normalisation.
        settings: Arguments of the head.
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
    """RPN with normalisation in its first convolution, which MMDetection's RPN does not support.

    Training from scratch needs group normalisation and standardised weights (SM-NAS, section 3.3). MMDetection's RPN
    would be the only part between backbone and predictions without them.
    """


@MODELS.register_module()
class NormalizedGARPNHead(_NormalizedConvolution, LenientGARPNHead):
    """Guided anchoring with normalisation; see :class:`NormalizedRPNHead`."""


@MODELS.register_module()
class ExactRoIExtractor(SingleRoIExtractor):  # type: ignore[misc]  # as above
    """Pools the features of regions in float32 even in mixed precision.

    MMDetection's extractor casts regions to the half precision of the features before it selects their levels. The area
    of regions of more than 256x256 pixels then overflows, and coordinates above 1024 are rounded to whole pixels.
    """

    def forward(self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Return the features of regions; see SingleRoIExtractor."""
        exact = torch.promote_types(feats[0].dtype, torch.float32)
        regions: Tensor = super().forward(tuple(level.to(exact) for level in feats), rois, roi_scale_factor)
        return regions.to(feats[0].dtype)
