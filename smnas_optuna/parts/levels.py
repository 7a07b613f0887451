"""Feature levels: P1 has stride 4 (ResNet's C2), P2 8, P3 16, P4 32, P5 64, P6 128; a neck makes the last two."""

from dataclasses import dataclass

BACKBONE_LEVELS = (1, 2, 3, 4)

# The level that the heads work on where there is no neck; see StructuralSpace.
SINGLE_LEVEL = 3


def stride_of(level: int) -> int:
    """Return the stride, in input pixels, of feature level P``level``: 4 for P1, doubling with each level."""
    return 1 << (level + 1)


@dataclass(frozen=True)
class Features:
    """What the heads of a detector work on.

    Args:
        strides: Strides, in pixels, of the levels that have anchors.
        roi_strides: Strides of the levels that regions are cut from.
        channels: Channels of each level.
        one_level: The level is a backbone's own, without a neck, and has anchors of the sizes of a pyramid's levels.
    """

    strides: tuple[int, ...]
    roi_strides: tuple[int, ...]
    channels: int
    one_level: bool
