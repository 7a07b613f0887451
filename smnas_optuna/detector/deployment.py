"""Detectors as they are deployed: for inference, with everything computed once that does not depend on the image."""

import copy
import functools
from typing import Any

import torch
from mmcv.cnn.bricks.conv_ws import ConvWS2d
from torch import nn


def deployed(model: nn.Module, *, compiled: bool = False) -> Any:
    """Return a copy of a detector for inference, in which standardised weights are constants.

    In training they are standardised at each call, which takes more operations than all others of a small detector.

    Args:
        model: An MMDetection detector; it is left as it is.
        compiled: Compile backbone, neck, and the convolutions of an RPN or RetinaNet head with torch.compile, on a GPU
            as CUDA graphs. What depends on the image, such as non-maximum suppression and RCNN heads, is called as
            before, and so is guided anchoring. Each new size of image is compiled anew, when the first one comes.
    """
    copied: Any = copy.deepcopy(model).eval()
    for module in list(copied.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, ConvWS2d):
                setattr(module, name, _plain(layer))
    if compiled:
        compile_layers = functools.partial(torch.compile, mode="reduce-overhead", dynamic=False)
        copied.extract_feat = compile_layers(copied.extract_feat)
        head = copied.rpn_head if hasattr(copied, "rpn_head") else copied.bbox_head
        if not hasattr(head, "feature_adaption"):
            head.forward = compile_layers(head.forward)
    return copied


def _plain(layer: ConvWS2d) -> nn.Conv2d:
    """Return the plain convolution that computes the same as one that standardises its weights."""
    weight = layer.weight.data
    variation, mean = torch.std_mean(weight, dim=(1, 2, 3), keepdim=True)
    plain = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        layer.bias is not None,
        device=weight.device,
    ).eval()
    plain.weight.data = (weight - mean) / (variation + layer.eps)
    plain.bias = layer.bias
    return plain
