"""The surrogate model, which predicts the losses of untrained proposals."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .archive import Archive
from .expected_improvement import normal_cdf
from .features import Features
from .gaussian_process import GaussianProcess, Hyperparameters, fit_hyperparameters
from .space import Proposal

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Largest numbers of rows to fit hyperparameters to and to predict from, since a Gaussian process takes O(n^3).
_MAX_FITTED = 150
_MAX_CONDITIONED = 200


# The assumed error of a row that contradicts the rest, relative to its largest violation. With a smaller factor, a few
# rows that failed in the same way would seem to confirm each other.
_ERROR_FACTOR = 3.0

# The logarithmic scale of losses begins below the best loss, by this share of the range.
_WARP = 0.3


@dataclass(frozen=True)
class Warp:
    """A standardised logarithmic scale for losses, on which gains and costs are closer to linear in the capacity.

    Args:
        origin: The loss at minus infinity on this scale.
        mean: Mean of the logarithms.
        deviation: Standard deviation of the logarithms.
    """

    origin: float
    mean: float
    deviation: float

    @classmethod
    def of(cls, losses: Floats) -> Warp:
        """Return the scale for losses of shape (n,)."""
        origin = float(losses.min() - _WARP * (np.ptp(losses) or 1.0))
        logarithms = np.log(losses - origin)
        return cls(origin, float(logarithms.mean()), float(logarithms.std()) or 1.0)

    def __call__(self, losses: Floats) -> Floats:
        """Return losses on this scale; those that the scale was made for have mean 0 and deviation 1."""
        return (np.log(losses - self.origin) - self.mean) / self.deviation

    def back(self, mean: Floats, deviation: Floats) -> tuple[Floats, Floats]:
        """Return medians and, to first order, standard deviations of losses, from mean and deviation on this scale."""
        gap = np.exp(np.minimum(self.mean + self.deviation * mean, 700.0))
        return self.origin + gap, deviation * self.deviation * gap


@dataclass(frozen=True)
class Fit:
    """Fitted features and hyperparameters, which are used for several trials until the next fit.

    Args:
        features: Encodes proposals.
        hyperparameters: Hyperparameters of each modelled objective.
        constraint: Hyperparameters of the constraints' largest value; None if no row violates a constraint.
    """

    features: Features
    hyperparameters: tuple[Hyperparameters, ...]
    constraint: Hyperparameters | None
    _encoded: dict[int, Floats] = field(default_factory=dict, init=False)

    def encode_rows(self, archive: Archive, rows: Sequence[int]) -> Floats:
        """Return the features of archive rows, shape (n, d); each row is encoded once."""
        new = [row for row in rows if row not in self._encoded]
        proposals = [archive.proposals[row] for row in new]
        encoded = self.features.encode([proposal for proposal in proposals if proposal is not None])
        self._encoded.update(zip(new, encoded, strict=True))
        return np.array([self._encoded[row] for row in rows])


def fit(archive: Archive, n_rows: int, modelled: Sequence[int]) -> Fit:
    """Fit a Gaussian process for each modelled objective to the first ``n_rows`` rows of the archive."""
    rows = usable_rows(archive, n_rows, _MAX_FITTED)
    proposals = [archive.proposals[row] for row in rows]
    features = Features([proposal for proposal in proposals if proposal is not None])
    encoded = features.encode([proposal for proposal in proposals if proposal is not None])
    hyperparameters = []
    for objective in modelled:
        losses = archive.losses[rows, objective]
        targets = Warp.of(losses)(losses)
        error = target_errors(archive, n_rows, rows, objective, targets)
        hyperparameters.append(fit_hyperparameters(encoded, features.n_numerical, targets, error))
    excesses = np.array(archive.excesses)[rows]
    constraint = None
    if np.any(excesses > 0):
        constraint = fit_hyperparameters(
            encoded, features.n_numerical, (excesses - excesses.mean()) / (excesses.std() or 1.0)
        )
    return Fit(features, tuple(hyperparameters), constraint)


class Surrogate:
    """Predicts the losses of proposals.

    Args:
        archive: The trained architectures.
        fit: Features and hyperparameters.
        modelled: Indices of the objectives to predict, in the order of the fit.
    """

    def __init__(self, archive: Archive, fit: Fit, modelled: Sequence[int]) -> None:
        rows = usable_rows(archive, len(archive.numbers), _MAX_CONDITIONED)
        self._features = fit.features
        self._modelled = modelled
        encoded = fit.encode_rows(archive, rows.tolist())
        self._warps = [Warp.of(archive.losses[rows, objective]) for objective in modelled]
        self._processes = []
        for objective, warp, hyperparameters in zip(modelled, self._warps, fit.hyperparameters, strict=True):
            targets = warp(archive.losses[rows, objective])
            error = target_errors(archive, len(archive.numbers), rows, objective, targets)
            process = GaussianProcess(encoded, fit.features.n_numerical, targets, hyperparameters, error)
            self._processes.append(process)

        self._constraint = None
        if fit.constraint is not None:
            excesses = np.array(archive.excesses)[rows]
            self._constraint = GaussianProcess(encoded, fit.features.n_numerical, excesses, fit.constraint)

    def feasibility(self, proposals: Sequence[Proposal]) -> Floats:
        """Return the probabilities that proposals meet all constraints, shape (b,)."""
        if self._constraint is None:
            return np.ones(len(proposals))
        mean, deviation = self._constraint.predict(self._features.encode(proposals))
        return normal_cdf(-mean / deviation)

    def predict(self, proposals: Sequence[Proposal], known: Floats) -> tuple[Floats, Floats]:
        """Return means and standard deviations of the losses, shape (b, m) each.

        Args:
            proposals: The ``b`` proposals.
            known: Losses of the objectives that are not modelled, shape (b, m); returned as means with deviation 0.
        """
        mean, deviation = known.copy(), np.zeros_like(known)
        encoded = self._features.encode(proposals)
        for objective, warp, process in zip(self._modelled, self._warps, self._processes, strict=True):
            mean[:, objective], deviation[:, objective] = warp.back(*process.predict(encoded))
        return mean, deviation


def usable_rows(archive: Archive, n_rows: int, limit: int) -> Integers:
    """Return at most ``limit`` of the first ``n_rows`` rows, to learn from.

    If there are more, two thirds of the limit are the rows nearest to the front, and the others are spread evenly over
    the rest. The distance to the front is the largest scaled difference of losses from a point of the front.
    """
    losses = archive.losses[:n_rows]
    usable = np.array(archive.learnable[: bisect_left(archive.learnable, n_rows)], dtype=np.int64)
    if len(usable) <= limit:
        return usable
    front = archive.front_of_first(n_rows)
    front = front[np.all(np.isfinite(losses[front]), axis=1)]
    scaled = losses[usable] / (np.ptp(losses[usable], axis=0) + 1e-300)
    targets = losses[front] / (np.ptp(losses[usable], axis=0) + 1e-300)
    gaps = np.full(len(usable), np.inf)
    for target in targets:
        gaps = np.minimum(gaps, np.max(scaled - target, axis=1))
    nearest_first = usable[np.argsort(gaps, kind="stable")]
    n_near = 2 * limit // 3
    rest = nearest_first[n_near:]
    spread = rest[np.linspace(0, len(rest) - 1, limit - n_near).astype(int)]
    return np.sort(np.concatenate([nearest_first[:n_near], spread]))


def target_errors(archive: Archive, n_rows: int, rows: Integers, objective: int, targets: Floats) -> Floats:
    """Return the assumed standard deviations of the errors of targets, shape (n,).

    It is proportional to the largest violation of a row that contradicts the rest, and 0 for all other rows.

    Args:
        archive: The trained architectures.
        n_rows: Number of rows, from the first, among which contradictions are found.
        rows: Rows of the targets, shape (n,).
        objective: Index of the objective.
        targets: Losses on the logarithmic scale, shape (n,).
    """
    place = np.full(n_rows, -1)
    place[rows] = np.arange(len(rows))
    contradictions = archive.contradictions_of_first(n_rows)
    pairs = place[contradictions.pairs[objective]]
    pairs = pairs[np.all(pairs >= 0, axis=1)]
    error = np.zeros(len(rows))
    np.maximum.at(error, pairs, np.abs(targets[pairs[:, 0]] - targets[pairs[:, 1]])[:, None])
    # If none of the rows that it contradicts is among the targets, the range of all targets is assumed.
    error = np.where(error > 0, error, np.ptp(targets))
    return np.where(contradictions.rows[rows, objective], _ERROR_FACTOR * error, 0.0)
