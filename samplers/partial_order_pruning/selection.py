"""Which of many admissible candidates to train next."""

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
from .space import Candidate, Space
from .surrogate import Surrogate

Floats = NDArray[np.float64]

# Parameters to choose per proposal, over all its candidates: what replaying a search space costs grows with both.
_CHOICES = 4500
_MIN_CANDIDATES, _MAX_CANDIDATES = 120, 500
# Rounds in which candidates are bred from the best so many.
_ROUNDS, _SURVIVORS = 5, 6
# Comparisons with archive rows per proposal, over all its candidates.
_COMPARISONS = 1_000_000


@dataclass(frozen=True)
class Situation:
    """What a proposal is made from.

    Args:
        space: Makes candidates.
        archive: What has been trained.
        pending: What is being trained now.
        screen: What is worth training.
        fixed: Values that the trial must have.
        rng: Where chance comes from.
    """

    space: Space
    archive: Archive
    pending: Sequence[Candidate]
    screen: Screen
    fixed: Mapping[str, Any]
    rng: random.Random

    @property
    def parents(self) -> list[Candidate]:
        """The front and what is being trained."""
        rows = [self.archive.candidates[row] for row in self.archive.front]
        return [row for row in rows if row is not None] + list(self.pending)


def random_candidates(situation: Situation, n_candidates: int) -> list[Candidate]:
    """Return random candidates; fewer where most combinations are invalid."""
    return _collect(lambda: situation.space.random_candidate(situation.rng, situation.fixed), n_candidates)


def offspring(situation: Situation, parents: Sequence[Candidate], n_candidates: int) -> list[Candidate]:
    """Return mutants of the parents and of crosses between them, as many of these as of those."""
    rng = situation.rng

    def make() -> Candidate | None:
        n_parents = 2 if len(parents) > 1 and rng.random() < 0.5 else 1
        return situation.space.offspring(rng.sample(parents, n_parents), rng, situation.fixed)

    return _collect(make, n_candidates) if parents else []


def _collect(make: Callable[[], Candidate | None], n_candidates: int) -> list[Candidate]:
    made: list[Candidate] = []
    for _ in range(4 * n_candidates):
        candidate = make()
        if candidate is not None:
            made.append(candidate)
            if len(made) == n_candidates:
                break
    return made


def n_candidates_for(situation: Situation) -> int:
    """Return how many candidates one proposal looks at, so that its time hardly grows with space and study."""
    n_params = max((len(candidate.params) for candidate in situation.parents), default=1)
    n_rows = len(situation.archive.numbers)
    wanted = min(_CHOICES // n_params, _COMPARISONS // max(n_rows, 1))
    return min(max(wanted, _MIN_CANDIDATES), _MAX_CANDIDATES)


def evolve(situation: Situation) -> Candidate | None:
    """Return the first admissible mutant of the Pareto front (the paper's way), or None if there is none."""
    rng = situation.rng
    parents = situation.parents
    for _ in range(20):
        mutants = (
            _collect(lambda: situation.space.offspring([rng.choice(parents)], rng, situation.fixed), 10)
            if parents
            else random_candidates(situation, 10)
        )
        passed = situation.screen(mutants)
        if passed.candidates:
            return passed.candidates[0]
    return None


def improve(situation: Situation, surrogate: Surrogate, surplus: int) -> Candidate | None:
    """Return the candidate with the largest expected hypervolume improvement, or None if none is admissible.

    A quarter of the candidates are offspring of the front, a quarter random, and half are bred from the best of these,
    round by round.

    Args:
        situation: What to choose from.
        surrogate: What to expect of a candidate.
        surplus: Choose among as many of the next best at random too: two workers that met at one candidate part so.
    """
    n_candidates = n_candidates_for(situation)
    screened = situation.screen(
        offspring(situation, situation.parents, n_candidates // 4) + random_candidates(situation, n_candidates // 4)
    )
    if not screened.candidates:
        return None
    acquisition = Acquisition(situation, surrogate)
    scores = acquisition(screened)
    for _ in range(_ROUNDS):
        best = [screened.candidates[index] for index in np.argsort(-scores, kind="stable")[:_SURVIVORS]]
        nearby = situation.screen(offspring(situation, best, n_candidates // 2 // _ROUNDS))
        if nearby.candidates:
            screened = join([screened, nearby])
            scores = np.concatenate([scores, acquisition(nearby)])
    ranked = np.argsort(-scores, kind="stable").tolist()
    chosen: int = ranked[situation.rng.randrange(min(1 + surplus, len(ranked)))]
    return screened.candidates[chosen]


class Acquisition:
    """Scores candidates by expected hypervolume improvement over what is trained and being trained.

    It is multiplied by the probability that a candidate meets the study's constraints.

    What is being trained counts as if it had already turned out as expected ("kriging believer"), so parallel workers
    spread out. Losses are scaled to the range of what has been trained; the reference point lies a tenth beyond its
    worst.

    Args:
        situation: What has been trained.
        surrogate: What to expect of the rest.
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
            mean, _ = surrogate.predict(pending.candidates, pending.known)
            is_known = np.isfinite(pending.known)
            believed = np.minimum(np.maximum(mean, pending.bounds.lower), pending.bounds.upper)
            front = np.concatenate([front, np.where(is_known, pending.known, believed)])
        scaled = (front - self._low) / self._span
        self._boxes = non_dominated_boxes(scaled, np.full(losses.shape[1], 1.1))

    def __call__(self, screened: Screened) -> Floats:
        """Return a score for each candidate, shape (b,); the larger the better."""
        mean, deviation = self._surrogate.predict(screened.candidates, screened.known)
        scaled = [(part - self._low) / self._span for part in (mean, screened.bounds.lower, screened.bounds.upper)]
        gain = expected_hypervolume_improvement(self._boxes, scaled[0], deviation / self._span, scaled[1], scaled[2])
        return gain * self._surrogate.feasibility(screened.candidates)


def spread(situation: Situation, size: Callable[[Screened], Floats], place: float) -> Candidate | None:
    """Return the candidate for one place of a start design that is spread over sizes.

    Of the admissible candidates whose size is about the wanted quantile, that which is farthest from all that has
    been or is being trained.

    Args:
        situation: What to choose from.
        size: Of candidates; NaN for all where nothing is known, and then only the distance counts.
        place: The quantile, 0 for the smallest and 1 for the largest candidate.
    """
    screened = situation.screen(random_candidates(situation, _MAX_CANDIDATES // 2))
    for sign in (1.0, -1.0):
        for _ in range(8):
            sizes = sign * size(screened)
            if not screened.candidates or np.isnan(sizes[0]):
                break
            extreme = [screened.candidates[index] for index in np.argsort(sizes, kind="stable")[:3]]
            further = situation.screen(offspring(situation, extreme, 16))
            screened = join([screened, further])
    if not screened.candidates:
        return None
    sizes = size(screened)
    n = len(sizes)
    if np.isnan(sizes[0]):
        slice_ = np.arange(n)
    else:
        width = max(1, n // 40)
        middle = round(place * (n - 1))
        ranked = np.argsort(sizes, kind="stable")
        # The extremes are wanted themselves, not something near.
        slice_ = ranked[middle : middle + 1] if place in (0.0, 1.0) else ranked[max(0, middle - width) : middle + width]
    others = [row for row in situation.archive.candidates if row is not None] + list(situation.pending)
    if not others:
        return screened.candidates[int(slice_[len(slice_) // 2])]
    features = Features([*others, *screened.candidates])
    encoded, placed = features.encode([screened.candidates[index] for index in slice_]), features.encode(others)
    distance = np.abs(encoded[:, None, :] - placed[None, :, :])
    distance[:, :, features.n_numerical :] = distance[:, :, features.n_numerical :] > 0
    return screened.candidates[int(slice_[np.argmax(distance.sum(axis=2).min(axis=1))])]


def mean_capacity(candidates: Sequence[Candidate]) -> Floats:
    """Return the mean capacity of candidates, each scaled to the range within its group; NaN where there is none."""
    sizes = np.full(len(candidates), np.nan)
    of_group = defaultdict(list)
    for index, candidate in enumerate(candidates):
        of_group[candidate.group, len(candidate.vector)].append(index)
    for (_, n_capacities), indices in of_group.items():
        if n_capacities:
            vectors = np.array([candidates[index].vector for index in indices])
            sizes[indices] = np.mean(
                (vectors - vectors.min(axis=0)) / np.maximum(np.ptp(vectors, axis=0), 1e-300), axis=1
            )
    return sizes
