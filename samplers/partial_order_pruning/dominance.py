"""Pareto dominance of losses (lower is better)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]


def weakly_dominates(one: Floats, other: Floats) -> Booleans:
    """Return whether losses are no worse than others in any objective.

    Args:
        one: Losses, shape (..., m).
        other: Losses, shape (..., m); both are broadcast against each other.

    Returns:
        A flag for each pair, shape (...).
    """
    return np.asarray(np.all(one <= other, axis=-1))


def dominates(one: Floats, other: Floats) -> Booleans:
    """Return whether losses are no worse in any objective and better in one; see :func:`weakly_dominates`."""
    return np.asarray(np.all(one <= other, axis=-1) & np.any(one < other, axis=-1))


def non_dominated(losses: Floats) -> Booleans:
    """Return which points no other point dominates.

    Args:
        losses: Losses, shape (n, m), without NaN.

    Returns:
        Flags, shape (n,). Equal points do not dominate each other, so their flags are equal.
    """
    flags = np.ones(len(losses), dtype=np.bool_)
    for index, point in enumerate(losses):
        if flags[index]:
            flags &= ~dominates(point, losses)
    return flags
