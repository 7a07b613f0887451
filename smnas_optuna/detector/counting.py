"""Counts multiply-adds and parameters of whole detectors."""

import functools
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from smnas_optuna.detector import layers  # noqa: F401  # registers our layers and provides mmcv's operators
from smnas_optuna.detector.flops import pad
from smnas_optuna.parts.architecture import InputSize


def count_costs(model_config: dict[str, Any], input_size: InputSize) -> tuple[int, int]:
    """Count a detector's multiply-adds for one image and its parameters.

    The detector is built on the meta device, so it takes no memory. As in the paper's tables, convolutions and matrix
    products are counted; normalisation, RoIAlign and non-maximum suppression are not. RCNN heads, and each stage of a
    cascade, are counted for the largest number of proposals in testing, and mask heads for the largest number of
    detections.

    Args:
        model_config: The ``model`` of an MMDetection config.
        input_size: Size of the image; its sides are padded as the detector pads them.

    Returns:
        (multiply-adds, parameters)
    """
    model: Any = build_on_meta(model_config).eval()
    size = pad(input_size, model_config["data_preprocessor"]["pad_size_divisor"])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features = model.extract_feat(_on_meta(1, 3, size.height, size.width))
        if "rpn_head" not in model_config:
            model.bbox_head(features)
        else:
            _make_countable(model.rpn_head)(features)
            proposals = model_config["test_cfg"]["rpn"]["max_per_img"]
            heads = model.roi_head.bbox_head
            stages: Any = heads if isinstance(heads, nn.ModuleList) else [heads]
            for head in stages:
                head(_on_meta(proposals, head.in_channels, 7, 7))
            if model.roi_head.with_mask:
                mask_head = model.roi_head.mask_head
                mask_head(_on_meta(model_config["test_cfg"]["rcnn"]["max_per_img"], mask_head.in_channels, 14, 14))
    return counter.get_total_flops() // 2, sum(parameter.numel() for parameter in model.parameters())


def count_backbone(backbone_config: dict[str, Any], input_size: InputSize) -> tuple[int, int]:
    """Count a backbone's multiply-adds for one image of a size that needs no padding, and its parameters."""
    backbone = build_on_meta(backbone_config)
    backbone.eval()  # not chained, since the method of MMDetection's backbones returns None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(_on_meta(1, 3, input_size.height, input_size.width))
    return counter.get_total_flops() // 2, sum(parameter.numel() for parameter in backbone.parameters())


def published_model(config: PurePosixPath) -> dict[str, Any]:
    """Return the ``model`` of one of MMDetection's own configs, by its path in the folder ``configs``."""
    folder = Path(str(resources.files("mmdet"))) / ".mim" / "configs"
    return Config.fromfile(folder / config).model.to_dict()  # type: ignore[no-any-return]  # mmengine is untyped


def build_on_meta(model_config: dict[str, Any]) -> nn.Module:
    """Build a detector, or a part of one, on the meta device, where tensors have shapes but take no memory."""
    with torch.device("meta"), DefaultScope.overwrite_default_scope("mmdet"):
        model: nn.Module = MODELS.build(ConfigDict(model_config))
    return model


def _on_meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def _make_countable(rpn_head: Any) -> Any:
    """Replace the special layers of guided anchoring by ordinary ones with the same multiply-adds, and return the RPN.

    In training mode, predictions are not masked by location, which would depend on the image. The deformable
    convolution becomes a plain one, since mmcv's has no kernel for the meta device.
    """
    if hasattr(rpn_head, "feature_adaption"):
        layer = rpn_head.feature_adaption.conv_adaption
        layer.forward = functools.partial(_convolve, layer)
    return rpn_head.train()


def _convolve(layer: Any, features: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    return F.conv2d(features, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
