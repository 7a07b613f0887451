"""A course of numbers as one line of text."""

import itertools
from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Return a bar of eight heights for each value, from the smallest to the largest.

    Args:
        values: Finite.
        width: Bars at most; of more values each bar has the mean of as many.
    """
    count = min(width, len(values))
    bounds = [round(index * len(values) / count) for index in range(count + 1)] if count else [0]
    means = [sum(values[low:high]) / (high - low) for low, high in itertools.pairwise(bounds)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(_BARS) - 1) / ((high - low) or 1.0)
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)
