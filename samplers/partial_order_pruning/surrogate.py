"""The surrogate: what losses to expect of an untrained candidate, and how surely."""

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
from .space import Candidate

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# A Gaussian process costs O(n^3): beyond these it learns from the rows near the front and a spread of the others.
_MAX_FITTED = 150
_MAX_CONDITIONED = 200


# The error of a row that contradicts the rest, relative to what it is seen to be off by. With less, a few rows that
# went wrong alike would be taken to confirm each other.
_DOUBT = 3.0

# A loss is learned as the logarithm of what it lacks to the best plus this share of the range.
_WARP = 0.3


@dataclass(frozen=True)
class Warp:
    """A logarithmic scale for losses: what more capacity gains dwindles near the best, what more costs swells far off.

    Args:
        origin: The loss that would be at minus infinity.
        mean: Of the logarithms.
        deviation: Of the logarithms.
    """

    origin: float
    mean: float
    deviation: float

    @classmethod
    def of(cls, losses: Floats) -> Warp:
        """Return the scale of some losses, shape (n,)."""
        origin = float(losses.min() - _WARP * (np.ptp(losses) or 1.0))
        logarithms = np.log(losses - origin)
        return cls(origin, float(logarithms.mean()), float(logarithms.std()) or 1.0)

    def __call__(self, losses: Floats) -> Floats:
        """Return warped losses: mean 0 and deviation 1 for those that the scale was made of."""
        return (np.log(losses - self.origin) - self.mean) / self.deviation

    def back(self, mean: Floats, deviation: Floats) -> tuple[Floats, Floats]:
        """Return median and, to first order, standard deviation of the losses of which these are the warped ones."""
        gap = np.exp(np.minimum(self.mean + self.deviation * mean, 700.0))
        return self.origin + gap, deviation * self.deviation * gap


@dataclass(frozen=True)
class Fit:
    """What is fitted now and then; learning from new rows between fits needs no fitting.

    Args:
        features: How candidates are encoded.
        hyperparameters: One for each modelled objective.
        constraint: For what constraints are exceeded by; None while none is.
    """

    features: Features
    hyperparameters: tuple[Hyperparameters, ...]
    constraint: Hyperparameters | None
    _encoded: dict[int, Floats] = field(default_factory=dict, init=False)

    def encode_rows(self, archive: Archive, rows: Sequence[int]) -> Floats:
        """Return the features of trained architectures, each of which is encoded once, shape (n, d)."""
        new = [row for row in rows if row not in self._encoded]
        candidates = [archive.candidates[row] for row in new]
        encoded = self.features.encode([candidate for candidate in candidates if candidate is not None])
        self._encoded.update(zip(new, encoded, strict=True))
        return np.array([self._encoded[row] for row in rows])


def fit(archive: Archive, n_rows: int, modelled: Sequence[int]) -> Fit:
    """Fit one Gaussian process for each modelled objective to the first ``n_rows`` trained architectures."""
    rows = usable_rows(archive, n_rows, _MAX_FITTED)
    candidates = [archive.candidates[row] for row in rows]
    features = Features([candidate for candidate in candidates if candidate is not None])
    encoded = features.encode([candidate for candidate in candidates if candidate is not None])
    hyperparameters = []
    for objective in modelled:
        losses = archive.losses[rows, objective]
        targets = Warp.of(losses)(losses)
        doubt = doubts(archive, n_rows, rows, objective, targets)
        hyperparameters.append(fit_hyperparameters(encoded, features.n_numerical, targets, doubt))
    excesses = np.array(archive.excesses)[rows]
    constraint = None
    if np.any(excesses > 0):
        constraint = fit_hyperparameters(
            encoded, features.n_numerical, (excesses - excesses.mean()) / (excesses.std() or 1.0)
        )
    return Fit(features, tuple(hyperparameters), constraint)


class Surrogate:
    """Predicts the modelled losses of candidates.

    Args:
        archive: What it learns from.
        fit: Its hyperparameters.
        modelled: The objectives that it predicts, in the order of the fit.
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
            doubt = doubts(archive, len(archive.numbers), rows, objective, targets)
            process = GaussianProcess(encoded, fit.features.n_numerical, targets, hyperparameters, doubt)
            self._processes.append(process)

        self._constraint = None
        if fit.constraint is not None:
            excesses = np.array(archive.excesses)[rows]
            self._constraint = GaussianProcess(encoded, fit.features.n_numerical, excesses, fit.constraint)

    def feasibility(self, candidates: Sequence[Candidate]) -> Floats:
        """Return the probability that candidates meet all constraints, shape (b,)."""
        if self._constraint is None:
            return np.ones(len(candidates))
        mean, deviation = self._constraint.predict(self._features.encode(candidates))
        return normal_cdf(-mean / deviation)

    def predict(self, candidates: Sequence[Candidate], known: Floats) -> tuple[Floats, Floats]:
        """Return means and standard deviations of the losses, shape (b, m) each.

        Args:
            candidates: ``b`` of them.
            known: Exactly known losses, shape (b, m); they are their own mean, without deviation.
        """
        mean, deviation = known.copy(), np.zeros_like(known)
        encoded = self._features.encode(candidates)
        for objective, warp, process in zip(self._modelled, self._warps, self._processes, strict=True):
            mean[:, objective], deviation[:, objective] = warp.back(*process.predict(encoded))
        return mean, deviation


def usable_rows(archive: Archive, n_rows: int, limit: int) -> Integers:
    """Return which of the first ``n_rows`` rows to learn from, at most ``limit``.

    Of many rows two thirds are those nearest to the front, in the largest scaled loss that they would have to lose,
    and the others are spread evenly over the rest.
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


def doubts(archive: Archive, n_rows: int, rows: Integers, objective: int, targets: Floats) -> Floats:
    """Return the standard deviation of the errors that the order shows in some targets, shape (n,).

    It is what a row that contradicts the rest is off by, and 0 for all others.

    Args:
        archive: What has been trained.
        n_rows: How many of its rows to compare.
        rows: Those of the targets, shape (n,).
        objective: Which one is learned.
        targets: Warped losses, shape (n,).
    """
    place = np.full(n_rows, -1)
    place[rows] = np.arange(len(rows))
    contradictions = archive.contradictions_of_first(n_rows)
    pairs = place[contradictions.pairs[objective]]
    pairs = pairs[np.all(pairs >= 0, axis=1)]
    doubt = np.zeros(len(rows))
    np.maximum.at(doubt, pairs, np.abs(targets[pairs[:, 0]] - targets[pairs[:, 1]])[:, None])
    # Where none of the rows that it contradicts is among the targets, it may be off by all that they span.
    doubt = np.where(doubt > 0, doubt, np.ptp(targets))
    return np.where(contradictions.rows[rows, objective], _DOUBT * doubt, 0.0)
