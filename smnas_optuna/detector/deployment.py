"""Detectors as they are deployed: for inference, with everything computed once that does not depend on the image."""

import copy
import functools
from typing import Any

import torch
from mmcv.cnn.bricks.conv_ws import ConvWS2d
from torch import nn
from torch.nn.utils import skip_init

_MODE = "reduce-overhead"
_CALLS_UNTIL_COMPILED = 3


def prepare_for_deployment(model: nn.Module, *, compiled: bool = False) -> Any:
    """Return a copy of a detector for inference, in which standardised weights are constants.

    In training they are standardised at each call, which takes more operations than all others of a small detector.

    Args:
        model: An MMDetection detector; it is left as it is.
        compiled: Compile backbone, neck, and the convolutions of an RPN or RetinaNet head with torch.compile, on a GPU
            as CUDA graphs. What depends on the image, such as non-maximum suppression and RCNN heads, is called as
            before, and so is guided anchoring. The first images of each size take a minute or more, see
            :func:`compile_now`.
    """
    copied: Any = copy.deepcopy(model).eval()
    for module in list(copied.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, ConvWS2d):
                setattr(module, name, _plain(layer))
    if compiled:
        compile_layers = functools.partial(torch.compile, mode=_MODE, dynamic=False)
        copied.extract_feat = compile_layers(copied.extract_feat)
        head = copied.rpn_head if hasattr(copied, "rpn_head") else copied.bbox_head
        if not hasattr(head, "feature_adaption"):
            head.forward = compile_layers(head.forward)
        copied.register_forward_pre_hook(_begin_image)
    return copied


def _begin_image(*_: Any) -> None:
    """Let compiled layers overwrite what they have returned for the image before."""
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # torch's is untyped


def compile_now(model: Any, sample: Any) -> None:
    """Have a detector with compiled layers compile them for the size of a sample, a batch as test_step takes it."""
    with torch.inference_mode():
        # CUDA graphs are recorded at the second call.
        for _ in range(_CALLS_UNTIL_COMPILED):
            model.test_step(sample)


def forget_compiled() -> None:
    """Free what compiled detectors keep: their code, and the GPU's memory of their CUDA graphs."""
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def check_compiler(device: torch.device) -> None:
    """Compile and run some layers as :func:`prepare_for_deployment` does; raises an error of any kind if that fails."""
    layers = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()).to(device).eval()
    compiled = torch.compile(layers, mode=_MODE, dynamic=False)
    with torch.inference_mode():
        for _ in range(_CALLS_UNTIL_COMPILED):
            compiled(torch.ones(1, 1, 2, 2, device=device))


def _plain(layer: ConvWS2d) -> nn.Conv2d:
    """Return the plain convolution that computes the same as one that standardises its weights."""
    weight = layer.weight.data
    variation, mean = torch.std_mean(weight, dim=(1, 2, 3), keepdim=True)
    # Without initialisation, which would take random numbers that training would miss.
    plain: nn.Conv2d = skip_init(  # type: ignore[no-untyped-call]  # torch's is untyped
        nn.Conv2d,
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
