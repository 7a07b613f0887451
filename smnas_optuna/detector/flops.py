"""Computes multiply-adds and parameters of backbones by formula, exactly and fast enough for every sampler proposal.

As in the paper's tables, except for its normalisation layers, the multiply-adds of convolutions and of the classifier
are counted. ``counting.py`` counts whole detectors by building them.
"""

import math
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

from smnas_optuna.parts.architecture import InputSize
from smnas_optuna.parts.backbones.searched import BackboneCode

_PAD = 32  # sides are padded to a multiple of the last stage's stride
_MB_EXPANSION = 6


def pad(input_size: InputSize, multiple: int = _PAD) -> InputSize:
    """Return an input size with its sides rounded up to multiples, as detectors pad images."""
    return InputSize(*(math.ceil(side / multiple) * multiple for side in (input_size.width, input_size.height)))


class BackboneCosts(NamedTuple):
    """Multiply-adds for one image, and parameters (including two per channel of a normalisation layer)."""

    flops: int
    params: int


class _Layer(NamedTuple):
    """Numbers of weights and of normalised channels of a block.

    Args:
        entering: Weights of convolutions that are applied at the block's input resolution.
        leaving: Weights of convolutions that are applied at its output resolution.
        channels: Channels of all its normalisation layers.
    """

    entering: int
    leaving: int
    channels: int


def backbone_costs(
    code: BackboneCode, input_size: InputSize, *, stages: int = 4, classes: int | None = None
) -> BackboneCosts:
    """Compute the costs of a backbone.

    Args:
        code: Code of the backbone; the code of a published network gives that network's costs.
        input_size: Size of the image; its sides are padded to multiples of 32, as detectors pad them.
        stages: Number of stages that are built, 1 to 4; 3 for a detector that uses no level above P3.
        classes: Number of classes of a classifier after global average pooling; None for no classifier.

    Raises:
        ValueError: The base is odd, or below 4 with ``Xbottleneck``.
    """
    if code.base % 2:
        raise ValueError(f"backbone code {code}: found the odd base {code.base}, expected an even one")
    if code.block == "Xbottleneck" and code.base < 4:
        raise ValueError(f"backbone code {code}: found the base {code.base}, expected 4 or more")
    padded = pad(input_size)
    # Positions at stride 4; each further stage has a quarter of the positions of the previous one.
    positions = padded.height * padded.width // 16
    flops, params = _stem(code, positions)
    channels = code.base
    for number, planes in enumerate(code.planes[:stages]):
        stride = 1 if number == 0 else 2
        stage_positions = positions >> (2 * number)
        for width, run in groupby(planes):
            repeats = len(list(run))
            first = _block(code.block, code.base, channels, width, stride)
            channels = _out_channels(code.block, width)
            others = _block(code.block, code.base, channels, width, 1)
            flops += stage_positions * (first.entering * stride * stride + first.leaving)
            flops += (repeats - 1) * stage_positions * (others.entering + others.leaving)
            params += first.entering + first.leaving + 2 * first.channels
            params += (repeats - 1) * (others.entering + others.leaving + 2 * others.channels)
            stride = 1
    if classes is not None:
        flops += channels * classes
        params += (channels + 1) * classes
    return BackboneCosts(flops, params)


def _stem(code: BackboneCode, positions: int) -> tuple[int, int]:
    base = code.base
    if code.is_published:
        return 4 * positions * 7 * 7 * 3 * base, 7 * 7 * 3 * base + 2 * base
    first, second = 9 * 3 * (base // 2), 9 * (base // 2) * base
    return positions * (4 * first + second), first + second + 2 * (base // 2 + base)


def _out_channels(block: str, planes: int) -> int:
    return 4 * planes if block in ("bottleneck", "Xbottleneck") else planes


@lru_cache(maxsize=1 << 16)
def _block(block: str, base: int, channels: int, planes: int, stride: int) -> _Layer:
    """Return the layers of a block from ``channels`` to ``planes``; its 3x3 convolution has the stride."""
    out = _out_channels(block, planes)
    if block == "MBblock":
        hidden = _MB_EXPANSION * channels
        return _Layer(channels * hidden, 9 * hidden + hidden * out, 2 * hidden + out)
    projects = stride != 1 or channels != out
    shortcut, shortcut_norm = (channels * out, out) if projects else (0, 0)
    if block == "basicblock":
        return _Layer(0, 9 * channels * planes + 9 * planes * planes + shortcut, 2 * planes + shortcut_norm)
    inner, groups = (2 * planes, base // 2) if block == "Xbottleneck" else (planes, 1)
    middle = 9 * inner * inner // groups
    return _Layer(channels * inner, middle + inner * out + shortcut, 2 * inner + out + shortcut_norm)
