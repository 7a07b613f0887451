"""Prepares detectors for deployment: what does not depend on the image is computed once."""

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

    In training, weights are standardised in each call, which takes most of a small detector's operations.

    Args:
        model: An MMDetection detector, which is not changed.
        compiled: Compile backbone, neck, and the convolutions of an RPN or RetinaNet head with torch.compile, on a GPU
            with CUDA graphs. What depends on the image, such as non-maximum suppression and RCNN heads, is not
            compiled, nor is guided anchoring. The first images of each size take a minute or more, see
            :func:`compile_now`.
    """
    # Trained on a CPU, weights have another layout than those of an untrained detector.
    copied: Any = copy.deepcopy(model).eval().to(memory_format=torch.contiguous_format)
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
        copied.register_forward_pre_hook(_reuse_outputs)
    return copied


def _reuse_outputs(*_: Any) -> None:
    """Allow compiled layers to overwrite their outputs of the previous image."""
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # torch's is untyped


def compile_now(model: Any, sample: Any) -> None:
    """Compile the layers of a detector from :func:`prepare_for_deployment` for the size of a sample.

    Args:
        model: The detector.
        sample: A batch, as ``test_step`` takes it.
    """
    with torch.inference_mode():
        # CUDA graphs are recorded in the second call.
        for _ in range(_CALLS_UNTIL_COMPILED):
            model.test_step(sample)


def forget_compiled() -> None:
    """Free the code of compiled detectors and the GPU memory of their CUDA graphs."""
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def check_compiler(device: torch.device) -> None:
    """Compile and run a small network as :func:`prepare_for_deployment` does; raises any exception if that fails."""
    layers = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()).to(device).eval()
    compiled = torch.compile(layers, mode=_MODE, dynamic=False)
    with torch.inference_mode():
        for _ in range(_CALLS_UNTIL_COMPILED):
            compiled(torch.ones(1, 1, 2, 2, device=device))


def _plain(layer: ConvWS2d) -> nn.Conv2d:
    """Return a plain convolution with the standardised weights of a layer."""
    weight = layer.weight.data
    deviation, mean = torch.std_mean(weight, dim=(1, 2, 3), keepdim=True)
    # Initialisation is skipped, since it would change the random numbers that training uses.
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
    plain.weight.data = (weight - mean) / (deviation + layer.eps)
    plain.bias = layer.bias
    return plain
