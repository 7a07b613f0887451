"""Feature levels P1 to P6 with strides 4, 8, 16, 32, 64, 128 pixels; P1 is ResNet's C2, only necks have P5 and P6."""

from dataclasses import dataclass

BACKBONE_LEVELS = (1, 2, 3, 4)

# The level that the heads use where there is no neck; see StructuralSpace.
SINGLE_LEVEL = 3


def stride_of(level: int) -> int:
    """Return the stride of feature level P``level`` in pixels of the input: 4 for P1, doubling with each level."""
    return 1 << (level + 1)


@dataclass(frozen=True)
class Features:
    """The feature levels that the heads of a detector use.

    Args:
        strides: Strides in pixels of the levels with anchors.
        roi_strides: Strides in pixels of the levels from which features of regions are pooled.
        channels: Channels of each level.
        one_level: Whether there is no neck but a single level of the backbone, with anchors of all sizes.
    """

    strides: tuple[int, ...]
    roi_strides: tuple[int, ...]
    channels: int
    one_level: bool
