"""Generates proposals, and selects the one to train next."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .archive import Archive
from .expected_improvement import expected_hypervolume_improvement, non_dominated_boxes
from .features import Features
from .screen import Screen, Screened, join
from .space import Proposal, Space
from .surrogate import Surrogate

Floats = NDArray[np.float64]

# Parameter values to choose per trial, over all proposals; they determine the time of running the search space.
_CHOICES = 4500
_MIN_PROPOSALS, _MAX_PROPOSALS = 120, 500
# Rounds of generating offspring, and the number of best proposals that are the parents in each.
_ROUNDS, _SURVIVORS = 5, 6
# Comparisons with archive rows per trial, over all proposals.
_COMPARISONS = 1_000_000


@dataclass(frozen=True)
class Situation:
    """Everything that the selection for one trial depends on.

    Args:
        space: Generates proposals.
        archive: The trained architectures.
        pending: The architectures of running and waiting trials.
        screen: Rejects proposals that are not worth training.
        fixed: Parameter values that ``study.enqueue_trial()`` has fixed for the trial.
        rng: Random number generator.
    """

    space: Space
    archive: Archive
    pending: Sequence[Proposal]
    screen: Screen
    fixed: Mapping[str, Any]
    rng: random.Random

    @property
    def parents(self) -> list[Proposal]:
        """The architectures of the front, and the pending ones."""
        rows = [self.archive.proposals[row] for row in self.archive.front]
        return [row for row in rows if row is not None] + list(self.pending)


def random_proposals(situation: Situation, n_proposals: int) -> list[Proposal]:
    """Return random proposals; fewer than ``n_proposals`` if most combinations are invalid."""
    return _collect(lambda: situation.space.random_proposal(situation.rng, situation.fixed), n_proposals)


def offspring(situation: Situation, parents: Sequence[Proposal], n_proposals: int) -> list[Proposal]:
    """Return mutants of single parents and of crosses between two parents, in equal shares."""
    rng = situation.rng

    def make() -> Proposal | None:
        n_parents = 2 if len(parents) > 1 and rng.random() < 0.5 else 1
        return situation.space.offspring(rng.sample(parents, n_parents), rng, situation.fixed)

    return _collect(make, n_proposals) if parents else []


def _collect(make: Callable[[], Proposal | None], n_proposals: int) -> list[Proposal]:
    made: list[Proposal] = []
    for _ in range(4 * n_proposals):
        proposal = make()
        if proposal is not None:
            made.append(proposal)
            if len(made) == n_proposals:
                break
    return made


def n_proposals_for(situation: Situation) -> int:
    """Return how many proposals to generate for a trial, so that the time hardly grows with space and study."""
    n_params = max((len(proposal.params) for proposal in situation.parents), default=1)
    n_rows = len(situation.archive.numbers)
    affordable = min(_CHOICES // n_params, _COMPARISONS // max(n_rows, 1))
    return min(max(affordable, _MIN_PROPOSALS), _MAX_PROPOSALS)


def evolve(situation: Situation) -> Proposal | None:
    """Return the first mutant of the Pareto front that passes the screen, as in the paper; None if there is none."""
    rng = situation.rng
    parents = situation.parents
    for _ in range(20):
        mutants = (
            _collect(lambda: situation.space.offspring([rng.choice(parents)], rng, situation.fixed), 10)
            if parents
            else random_proposals(situation, 10)
        )
        passed = situation.screen(mutants)
        if passed.proposals:
            return passed.proposals[0]
    return None


def improve(situation: Situation, surrogate: Surrogate, n_alternatives: int) -> Proposal | None:
    """Return the proposal with the largest expected hypervolume improvement; None if none passes the screen.

    A quarter of the proposals are offspring of the front, a quarter are random, and half are offspring of the best
    ones so far, in several rounds.

    Args:
        situation: What the selection depends on.
        surrogate: Predicts the losses of proposals.
        n_alternatives: Choose at random among the best one and so many of the next best ones, so that workers that
            have selected the same proposal select different ones.
    """
    n_proposals = n_proposals_for(situation)
    screened = situation.screen(
        offspring(situation, situation.parents, n_proposals // 4) + random_proposals(situation, n_proposals // 4)
    )
    if not screened.proposals:
        return None
    acquisition = Acquisition(situation, surrogate)
    scores = acquisition(screened)
    for _ in range(_ROUNDS):
        best = [screened.proposals[index] for index in np.argsort(-scores, kind="stable")[:_SURVIVORS]]
        nearby = situation.screen(offspring(situation, best, n_proposals // 2 // _ROUNDS))
        if nearby.proposals:
            screened = join([screened, nearby])
            scores = np.concatenate([scores, acquisition(nearby)])
    ranked = np.argsort(-scores, kind="stable").tolist()
    chosen: int = ranked[situation.rng.randrange(min(1 + n_alternatives, len(ranked)))]
    return screened.proposals[chosen]


class Acquisition:
    """Scores proposals by expected hypervolume improvement times the probability that they meet the constraints.

    Pending architectures are assumed to have the expected losses ("kriging believer"), so that parallel workers select
    different proposals. Losses are scaled to the range of the trained architectures; the reference point is 10 % of
    the range beyond the worst.

    Args:
        situation: The trained and the pending architectures.
        surrogate: Predicts the losses of proposals.
    """

    def __init__(self, situation: Situation, surrogate: Surrogate) -> None:
        losses = situation.archive.losses
        finite = losses[np.all(np.isfinite(losses), axis=1)]
        self._surrogate = surrogate
        self._low, span = finite.min(axis=0), np.ptp(finite, axis=0)
        self._span = np.where(span > 0, span, 1.0)
        front = losses[situation.archive.front]
        if situation.pending:
            pending = situation.screen.appraise(situation.pending)
            mean, _ = surrogate.predict(pending.proposals, pending.known)
            is_known = np.isfinite(pending.known)
            believed = np.minimum(np.maximum(mean, pending.bounds.lower), pending.bounds.upper)
            front = np.concatenate([front, np.where(is_known, pending.known, believed)])
        scaled = (front - self._low) / self._span
        self._boxes = non_dominated_boxes(scaled, np.full(losses.shape[1], 1.1))

    def __call__(self, screened: Screened) -> Floats:
        """Return the scores of proposals, shape (b,); larger is better."""
        mean, deviation = self._surrogate.predict(screened.proposals, screened.known)
        scaled = [(part - self._low) / self._span for part in (mean, screened.bounds.lower, screened.bounds.upper)]
        gain = expected_hypervolume_improvement(self._boxes, scaled[0], deviation / self._span, scaled[1], scaled[2])
        return gain * self._surrogate.feasibility(screened.proposals)


def spread(situation: Situation, size: Callable[[Screened], Floats], quantile: float) -> Proposal | None:
    """Return a proposal for a startup trial; None if none passes the screen.

    Among the proposals whose size is near a quantile of all sizes, it is the one farthest from all trained and pending
    architectures.

    Args:
        situation: What the selection depends on.
        size: Returns the sizes of proposals, shape (b,). If it returns NaN for all, only the distance counts.
        quantile: Quantile of the size, 0 for the smallest and 1 for the largest proposal.
    """
    screened = situation.screen(random_proposals(situation, _MAX_PROPOSALS // 2))
    for sign in (1.0, -1.0):
        for _ in range(8):
            sizes = sign * size(screened)
            if not screened.proposals or np.isnan(sizes[0]):
                break
            extreme = [screened.proposals[index] for index in np.argsort(sizes, kind="stable")[:3]]
            further = situation.screen(offspring(situation, extreme, 16))
            screened = join([screened, further])
    if not screened.proposals:
        return None
    sizes = size(screened)
    n = len(sizes)
    if np.isnan(sizes[0]):
        slice_ = np.arange(n)
    else:
        width = max(1, n // 40)
        middle = round(quantile * (n - 1))
        ranked = np.argsort(sizes, kind="stable")
        # At both ends the smallest and the largest one itself is used, not one near it.
        is_end = quantile in (0.0, 1.0)
        slice_ = ranked[middle : middle + 1] if is_end else ranked[max(0, middle - width) : middle + width]
    others = [row for row in situation.archive.proposals if row is not None] + list(situation.pending)
    if not others:
        return screened.proposals[int(slice_[len(slice_) // 2])]
    features = Features([*others, *screened.proposals])
    encoded, placed = features.encode([screened.proposals[index] for index in slice_]), features.encode(others)
    distance = np.abs(encoded[:, None, :] - placed[None, :, :])
    distance[:, :, features.n_numerical :] = distance[:, :, features.n_numerical :] > 0
    return screened.proposals[int(slice_[np.argmax(distance.sum(axis=2).min(axis=1))])]


def mean_capacity(proposals: Sequence[Proposal]) -> Floats:
    """Return the mean of the capacities of each proposal, scaled to their range in its group, shape (b,).

    It is NaN for proposals without capacities.
    """
    sizes = np.full(len(proposals), np.nan)
    of_group = defaultdict(list)
    for index, proposal in enumerate(proposals):
        of_group[proposal.group, len(proposal.vector)].append(index)
    for (_, n_capacities), indices in of_group.items():
        if n_capacities:
            vectors = np.array([proposals[index].vector for index in indices])
            sizes[indices] = np.mean(
                (vectors - vectors.min(axis=0)) / np.maximum(np.ptp(vectors, axis=0), 1e-300), axis=1
            )
    return sizes
