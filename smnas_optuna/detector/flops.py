"""Costs that need no measuring: multiply-adds and parameters of a whole detector."""

import math
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from smnas_optuna.architecture import InputSize

_PADDING = 32


def count_costs(model_config: dict[str, Any], input_size: InputSize) -> tuple[int, int]:
    """Count a detector's multiply-adds for one image and its parameters, without memory for either.

    The detector is built on the meta device. Convolutions and matrix products count, as in the paper's tables;
    normalisation, RoIAlign and non-maximum suppression do not. An RCNN head counts for as many proposals as it
    accepts in testing, each stage of a cascade in full.

    Args:
        model_config: The ``model`` of an MMDetection config.
        input_size: Box that the image is scaled to; its sides are padded to multiples of 32 as the detector does.

    Returns:
        (multiply-adds, parameters)
    """
    model = build_on_meta(model_config)
    height, width = (math.ceil(side / _PADDING) * _PADDING for side in (input_size.height, input_size.width))
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: _deform_conv_flops})
    # In training mode guided anchoring skips the mask over locations, which depends on the image.
    with counter, torch.no_grad(), torch.device("meta"):
        features = model.extract_feat(torch.empty(1, 3, height, width))  # type: ignore[operator]
        if "rpn_head" not in model_config:
            model.bbox_head(features)  # type: ignore[operator]
        else:
            model.rpn_head(features)  # type: ignore[operator]
            proposals = model_config["test_cfg"]["rpn"]["max_per_img"]
            heads = model.roi_head.bbox_head  # type: ignore[union-attr]
            for head in heads if isinstance(heads, nn.ModuleList) else [heads]:
                head(torch.empty(proposals, head.in_channels, 7, 7))  # type: ignore[operator]
    return counter.get_total_flops() // 2, sum(parameter.numel() for parameter in model.parameters())


def build_on_meta(model_config: dict[str, Any]) -> nn.Module:
    """Build a detector whose parameters have shapes but no memory."""
    with torch.device("meta"):
        model: nn.Module = MODELS.build(ConfigDict(model_config))
    return model


def _deform_conv_flops(input_shape: Any, weight_shape: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    """Count like the convolution of the same weight; two operations per multiply-add, as torch's counter has it."""
    batch, _, height, width = out_shape
    return 2 * int(math.prod(weight_shape)) * batch * height * width
