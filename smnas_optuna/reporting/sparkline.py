"""Sparkline: a sequence of numbers as bars in one line of text."""

import itertools
from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Return a bar for each value, with eight heights from the smallest to the largest value.

    Args:
        values: Finite numbers.
        width: Largest number of bars. If there are more values, each bar shows the mean of several.
    """
    count = min(width, len(values))
    bounds = [round(index * len(values) / count) for index in range(count + 1)] if count else [0]
    means = [sum(values[low:high]) / (high - low) for low, high in itertools.pairwise(bounds)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(_BARS) - 1) / ((high - low) or 1.0)
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)
