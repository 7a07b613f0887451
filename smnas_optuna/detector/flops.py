"""Multiply-adds and parameters of a backbone, by formula: exact, and fast enough to cost every proposal of a search.

Convolutions and the classifier count, as in the paper's tables less its normalisation layers; a multiply-add is one.
``counting.py`` counts whole detectors by building them.
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
    """Return the size of the tensor that a detector makes of an image of ``input_size``, sides being multiples."""
    return InputSize(*(math.ceil(side / multiple) * multiple for side in (input_size.width, input_size.height)))


class BackboneCosts(NamedTuple):
    """Multiply-adds for one image, and parameters (two per channel of a normalisation)."""

    flops: int
    params: int


class _Layer(NamedTuple):
    """Weights of convolutions per output position, at the two resolutions that a block works at, and norms' channels.

    Args:
        entering: Weights that are applied at the block's input resolution.
        leaving: Weights that are applied at its output resolution.
        channels: Channels that are normalised.
    """

    entering: int
    leaving: int
    channels: int


def backbone_costs(
    code: BackboneCode, input_size: InputSize, *, stages: int = 4, classes: int | None = None
) -> BackboneCosts:
    """Count the costs of a backbone code.

    Args:
        code: The backbone. The code of a published network has that network's costs.
        input_size: What the image is scaled to; sides are padded to multiples of 32, as detectors pad them.
        stages: How many of the four stages are built, 1 to 4: a detector that uses no level past P3 stops at 3.
        classes: Adds a classifier of so many classes behind global average pooling; None for none.

    Raises:
        ValueError: The base is odd, so the stem and ResNeXt's groups cannot have half as many channels.
    """
    if code.base % 2:
        raise ValueError(f"backbone code {code}: base {code.base} is odd; expected an even number of channels")
    if code.block == "Xbottleneck" and code.base < 4:
        raise ValueError(f"backbone code {code}: base {code.base} leaves a ResNeXt block one group; expected 4 or more")
    padded = pad(input_size)
    # Positions at stride 4; every further stage has a quarter of its predecessor's.
    positions = padded.height * padded.width // 16
    flops, params = _stem(code, positions)
    channels = code.base
    for number, planes in enumerate(code.planes[:stages]):
        stride = 1 if number == 0 else 2
        here = positions >> (2 * number)
        for width, run in groupby(planes):
            repeats = len(list(run))
            first = _block(code.block, code.base, channels, width, stride)
            channels = _out_channels(code.block, width)
            others = _block(code.block, code.base, channels, width, 1)
            flops += here * (first.entering * stride * stride + first.leaving)
            flops += (repeats - 1) * here * (others.entering + others.leaving)
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
