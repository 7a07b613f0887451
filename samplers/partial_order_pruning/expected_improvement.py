"""Expected hypervolume improvement in closed form, for independent (truncated) normal losses."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_erfc = np.frompyfunc(math.erfc, 1, 1)


def non_dominated_boxes(front: Floats, reference: Floats) -> tuple[Floats, Floats]:
    """Divide the region that a front does not dominate, up to a reference point, into disjoint boxes.

    The last objective is divided into slabs at the front's values. Within a slab, the region is that of the points
    below it in the other objectives. A front of f points gives f + 1 boxes in two objectives, O(f^2) in three.

    Args:
        front: Losses, shape (f, m); it may contain dominated points.
        reference: Reference point, shape (m,); points of the front beyond it are ignored.

    Returns:
        Lower and upper corners, shape (n_boxes, m) each; lower corners may be minus infinity.
    """
    front = front[np.all(front < reference, axis=1)]
    if len(reference) == 1:
        best = np.min(front[:, 0], initial=reference[0])
        return np.array([[-np.inf]]), np.array([[best]])
    if len(reference) == 2:
        front = front[np.argsort(front[:, 1])]
        lowest = np.minimum.accumulate(np.concatenate([reference[:1], front[:, 0]]))
        cuts = np.concatenate([[-np.inf], front[:, 1], reference[1:]])
        return np.column_stack([np.full_like(lowest, -np.inf), cuts[:-1]]), np.column_stack([lowest, cuts[1:]])
    cuts = np.concatenate([[-np.inf], np.unique(front[:, -1]), reference[-1:]])
    lowers, uppers = [], []
    for start, end in pairwise(cuts):
        lower, upper = non_dominated_boxes(front[front[:, -1] <= start][:, :-1], reference[:-1])
        lowers.append(np.column_stack([lower, np.full(len(lower), start)]))
        uppers.append(np.column_stack([upper, np.full(len(upper), end)]))
    return np.concatenate(lowers), np.concatenate(uppers)


def expected_shortfall(threshold: Floats, mean: Floats, deviation: Floats, lower: Floats, upper: Floats) -> Floats:
    """Return E[max(threshold - Y, 0)] for Y normal, truncated to [lower, upper]; arrays are broadcast.

    If the deviation is 0, Y is known exactly: it is the mean, whatever the bounds.
    """
    exact = np.maximum(threshold - mean, 0.0)
    if not np.any(deviation > 0):
        return exact
    scale = np.where(deviation > 0, deviation, 1.0)
    low, high = (lower - mean) / scale, (upper - mean) / scale
    cut = np.clip((threshold - mean) / scale, low, high)
    low_cdf, low_pdf = normal_cdf(low), _pdf(low)
    mass = normal_cdf(high) - low_cdf
    # E[(t - Z)+] = t (F(t) - F(l)) + f(t) - f(l), divided by the mass between the bounds; above it has slope 1.
    inside = cut * (normal_cdf(cut) - low_cdf) + _pdf(cut) - low_pdf
    beyond = np.maximum((threshold - mean) / scale - high, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        shortfall = scale * (inside / mass + np.where(beyond > 0, beyond, 0.0))
    # If there is almost no mass between the bounds, Y is taken to be the bound nearer to the mean.
    collapsed = np.maximum(threshold - np.clip(mean, lower, np.maximum(lower, upper)), 0.0)
    shortfall = np.where(mass > 1e-9, np.maximum(shortfall, 0.0), collapsed)
    return np.where(deviation > 0, shortfall, exact)


def expected_hypervolume_improvement(
    boxes: tuple[Floats, Floats], mean: Floats, deviation: Floats, lower: Floats, upper: Floats
) -> Floats:
    """Return the expected increase of the hypervolume by each of ``b`` proposals, shape (b,).

    The increase is the part of each box that is dominated. For independent losses its expectation is a product over
    the objectives of E[(u - Y)+] - E[(l - Y)+] for a box from l to u (Yang et al., "Efficient computation of expected
    hypervolume improvement using box decomposition algorithms", 2019).

    Args:
        boxes: Lower and upper corners of the boxes, from :func:`non_dominated_boxes`.
        mean: Expected losses, shape (b, m).
        deviation: Standard deviations of the losses, shape (b, m); 0 for an exactly known loss.
        lower: Lower bounds of the losses, shape (b, m).
        upper: Upper bounds of the losses, shape (b, m).
    """
    product = np.ones((len(mean), len(boxes[0])))
    for objective in range(mean.shape[1]):
        parts = (mean, deviation, lower, upper)
        columns = tuple(part[:, objective][:, None] for part in parts)
        ends, inverse = np.unique(np.concatenate([boxes[0][:, objective], boxes[1][:, objective]]), return_inverse=True)
        finite = np.where(np.isfinite(ends), ends, 0.0)
        shortfall = np.where(np.isfinite(ends), expected_shortfall(finite[None, :], *columns), 0.0)
        n_boxes = len(boxes[0])
        product *= shortfall[:, inverse[n_boxes:]] - shortfall[:, inverse[:n_boxes]]
    return np.asarray(product.sum(axis=1))


def _pdf(z: Floats) -> Floats:
    return np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)


def normal_cdf(z: Floats) -> Floats:
    """Return the probability that a standard normal number is below z."""
    return 0.5 * np.asarray(_erfc(-z / math.sqrt(2.0)), dtype=float)
