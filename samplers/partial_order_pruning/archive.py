"""The archive: every trained architecture of a study and what the partial order says about those that are not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .contradiction import Contradictions, Violations
from .dominance import dominates, weakly_dominates
from .space import Candidate

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

# An order that more than this share of pairs violates, once there are some, is taken to be untrue.
_MAX_VIOLATED, _MIN_COMPARISONS = 0.25, 8


def rows_to_fit(n_rows: int) -> int:
    """Return to how many of ``n_rows`` rows hyperparameters and noise levels are fitted.

    All up to 32, then 10 % more each time: a function of the study alone, so a restarted sampler goes on as before.
    """
    if n_rows < 32:
        return n_rows
    fitted = 32
    while (following := fitted + fitted // 10) <= n_rows:
        fitted = following
    return fitted


@dataclass(frozen=True)
class Bounds:
    """What the order says of ``b`` candidates and ``m`` objectives, as losses (the lower the better).

    Args:
        lower: The best possible losses, shape (b, m); minus infinity where nothing is known.
        upper: The worst possible losses, shape (b, m); infinity where nothing is known.
        witness: Archive row that gives each lower bound, shape (b, m); -1 where none does.
    """

    lower: Floats
    upper: Floats
    witness: Integers


class _Rows:
    """A growing matrix: appending is O(columns) on average."""

    def __init__(self, n_columns: int) -> None:
        self._matrix = np.empty((16, n_columns))
        self._length = 0

    def append(self, row: Sequence[float]) -> None:
        if self._length == len(self._matrix):
            self._matrix = np.concatenate([self._matrix, np.empty_like(self._matrix)])
        self._matrix[self._length] = row
        self._length += 1

    @property
    def array(self) -> Floats:
        return self._matrix[: self._length]


class _Group:
    """The comparable architectures of one group: their capacity vectors, losses and archive rows."""

    def __init__(self, n_capacities: int, n_objectives: int) -> None:
        self.vectors = _Rows(n_capacities)
        self.losses = _Rows(n_objectives)
        self.rows: list[int] = []


class Archive:
    """Trained architectures with incremental, vectorised bounds.

    The order says that x precedes y if both are of one group and no capacity of x exceeds that of y, and that a loss
    then rises (a cost) or falls (an error, an accuracy turned round) from x to y. So, for an objective whose loss
    rises, the largest loss below a candidate bounds it from below and the smallest loss above it from above; for one
    whose loss falls it is the other way round.

    Args:
        rises: For each objective whether its loss rises with capacity, shape (m,).
        tolerance: For each objective how far an architecture may violate the order, in its unit, shape (m,).
    """

    def __init__(self, rises: Booleans, tolerance: Floats) -> None:
        self._rises = rises
        self._tolerance = tolerance
        self._groups: dict[tuple[Hashable, int], _Group] = {}
        self._too_large: dict[tuple[Hashable, int], list[tuple[float, ...]]] = defaultdict(list)
        self._losses = _Rows(len(rises))
        self._front: list[int] = []
        self.candidates: list[Candidate | None] = []
        self.numbers: list[int] = []
        self.excesses: list[float] = []
        self.learnable: list[int] = []
        self.violations: Integers = np.zeros(len(rises), dtype=np.int64)
        self.comparisons = 0
        # Pairs of rows that violate the order, and for each objective by how much; not positive where they do not.
        self._violating = _Rows(2 + len(rises))
        self._contradictions: dict[int, Contradictions] = {}
        self._noise_levels: dict[int, Floats] = {}

    @property
    def losses(self) -> Floats:
        """The losses of all trained architectures, shape (n, m)."""
        return self._losses.array

    def contradictions_of_first(self, n_rows: int) -> Contradictions:
        """Return which of the first ``n_rows`` rows contradicted the others when there were no more."""
        if n_rows not in self._contradictions:
            n_fitted = rows_to_fit(n_rows)
            violations = Violations(self._violating.array[:, :2].astype(np.int64), self._violating.array[:, 2:])
            if n_fitted not in self._noise_levels:
                self._noise_levels[n_fitted] = violations.of_first(n_fitted).noise_levels(n_fitted)
            judged = violations.of_first(n_rows).contradictions(n_rows, self._noise_levels[n_fitted])
            # What is asked for is the present and the last fit.
            latest = {n: known for n, known in self._contradictions.items() if n == max(self._contradictions)}
            self._contradictions = {**latest, n_rows: judged}
        return self._contradictions[n_rows]

    @property
    def contradictions(self) -> Contradictions:
        """Which rows contradict the others."""
        return self.contradictions_of_first(len(self.numbers))

    @property
    def untrue(self) -> Booleans:
        """For each objective whether so many pairs violate the order that it is not used, shape (m,).

        Those of rows that contradict the rest do not count.
        """
        many = self.comparisons >= _MIN_COMPARISONS
        return many & (self.contradictions.n_noisy > _MAX_VIOLATED * self.comparisons)

    @property
    def slack(self) -> Floats:
        """How far the order is mistrusted, shape (m,): the tolerance, and what violations beyond it measured.

        That is their root mean square, those of rows that contradict the rest left out; so where the order holds, and
        only there, the bounds are as tight as it says.
        """
        return np.where(self.untrue, np.inf, self._tolerance + self.contradictions.noise)

    @property
    def _says_nothing(self) -> Booleans:
        """Which rows no bound follows from, shape (n, m): those that contradict the rest or are at the scale's end.

        What several share as the worst loss of all, such as a mean average precision of zero, says only that nothing
        was learned: in a small architecture for want of capacity, in a large one because its training went wrong.
        """
        is_worst = self.losses == np.max(self.losses, axis=0)
        is_shared: Booleans = is_worst & (np.sum(is_worst, axis=0) > 1)
        return self.contradictions.rows | is_shared

    @property
    def front(self) -> Integers:
        """The rows that no other feasible row dominates, shape (f,)."""
        return np.array(self._front, dtype=np.int64)

    def front_of_first(self, n_rows: int) -> Integers:
        """Return the front as it was after ``n_rows`` rows, shape (f,)."""
        if n_rows == len(self.numbers):
            return self.front
        front: list[int] = []
        for row in range(n_rows):
            if self.excesses[row] <= 0:
                front = _extended(front, self.losses, row)
        return np.array(front, dtype=np.int64)

    def add(self, number: int, candidate: Candidate | None, losses: Sequence[float], excess: float) -> None:
        """Add a trained architecture: O(n).

        Args:
            number: Of its trial.
            candidate: What was trained; None if it is not of the search space, so that nothing follows from it.
            losses: Shape (m,).
            excess: By how much it exceeds the constraint that it exceeds most. The front consists of those that exceed
                none, that is for which this is not positive.
        """
        row = len(self.numbers)
        self._losses.append(losses)
        self.candidates.append(candidate)
        self.numbers.append(number)
        self.excesses.append(excess)
        if candidate is not None and np.all(np.isfinite(losses)):
            self.learnable.append(row)
        if excess <= 0:
            self._front = _extended(self._front, self.losses, row)
        if candidate is not None and candidate.vector:
            self._add_to_group(row, candidate, np.asarray(losses, dtype=float))
            # What is no larger fits too, though it ran out of memory before, with less of that or beside others.
            too_large = self._too_large[candidate.group, len(candidate.vector)]
            too_large[:] = [vector for vector in too_large if np.any(np.array(vector) > candidate.vector)]

    def _add_to_group(self, row: int, candidate: Candidate, losses: Floats) -> None:
        key = candidate.group, len(candidate.vector)
        if key not in self._groups:
            self._groups[key] = _Group(len(candidate.vector), len(losses))
        group = self._groups[key]
        vector = np.array(candidate.vector)
        below = np.all(group.vectors.array <= vector, axis=1)
        above = np.all(group.vectors.array >= vector, axis=1)
        # Where the loss rises, it must not be smaller than below nor larger than above; where it falls, conversely.
        sign = np.where(self._rises, 1.0, -1.0)
        rise = sign * (losses - group.losses.array)
        excess = np.where(below[:, None], -rise, rise) - self._tolerance
        for index in np.flatnonzero((below | above) & np.any(excess > 0, axis=1)):
            self._violating.append([group.rows[index], row, *excess[index]])
            self.violations += excess[index] > 0
        self.comparisons += int(np.sum(below | above))
        group.vectors.append(candidate.vector)
        group.losses.append(losses.tolist())
        group.rows.append(row)

    def add_too_large(self, candidate: Candidate) -> None:
        """Note that an architecture ran out of memory: nothing larger will fit, unless that has been trained."""
        key = candidate.group, len(candidate.vector)
        if key in self._groups and np.any(np.all(self._groups[key].vectors.array >= candidate.vector, axis=1)):
            return
        if candidate.vector:
            self._too_large[key].append(candidate.vector)

    def is_too_large(self, candidate: Candidate) -> bool:
        """Say whether a candidate is at least as large as one that ran out of memory."""
        found = self._too_large.get((candidate.group, len(candidate.vector)))
        return bool(found) and bool(np.any(np.all(np.array(found) <= candidate.vector, axis=1)))

    def bounds(self, candidates: Sequence[Candidate]) -> Bounds:
        """Bound the losses of candidates from below and above."""
        shape = len(candidates), len(self._rises)
        bounds = Bounds(np.full(shape, -np.inf), np.full(shape, np.inf), np.full(shape, -1, dtype=np.int64))
        of_group = defaultdict(list)
        for index, candidate in enumerate(candidates):
            of_group[candidate.group, len(candidate.vector)].append(index)
        for key, indices in of_group.items():
            if key in self._groups:
                vectors = np.array([candidates[index].vector for index in indices])
                self._bound_group(self._groups[key], vectors, np.array(indices), bounds)
        return bounds

    def _bound_group(self, group: _Group, vectors: Floats, indices: Integers, bounds: Bounds) -> None:
        shape = len(vectors), len(group.rows)
        below, above = np.ones(shape, dtype=bool), np.ones(shape, dtype=bool)
        # Capacity by capacity: one matrix of candidates by rows, never one of candidates by rows by capacities.
        for mine, theirs in zip(vectors.T, group.vectors.array.T, strict=True):
            below &= theirs <= mine[:, None]
            above &= theirs >= mine[:, None]
        rows = np.array(group.rows)
        speaks = ~self._says_nothing[rows]
        for objective, (rises, slack) in enumerate(zip(self._rises, self.slack, strict=True)):
            losses = group.losses.array[:, objective]
            at_least = np.where((below if rises else above) & speaks[:, objective], losses, -np.inf)
            best = np.argmax(at_least, axis=1)
            lower = at_least[np.arange(len(best)), best]
            bounds.lower[indices, objective] = lower - slack
            bounds.witness[indices, objective] = np.where(np.isfinite(lower), rows[best], -1)
            bounds.upper[indices, objective] = (
                np.min(np.where((above if rises else below) & speaks[:, objective], losses, np.inf), axis=1) + slack
            )

    def dominators(self, corners: Floats, bounds: Bounds, known: Booleans) -> Integers:
        """Return for each candidate a row that dominates its optimistic corner, or -1; shape (b,).

        As in the paper (Li et al., CVPR 2019) a candidate x goes if some trained y that x precedes and some trained z
        other than y have accuracy(z) >= accuracy(y) and cost(z) < cost(x). An equal cost does not prune. Where no
        objective is a cost, z must be strictly better in all.

        Args:
            corners: Shape (b, m): the known losses and, for the others, the lower bounds.
            bounds: Of the same candidates.
            known: For each objective whether its losses are known exactly, shape (m,).
        """
        strict = self._rises | known
        if not np.any(strict):
            strict = np.ones_like(strict)
        front = self.front[~np.any(self.contradictions.rows[self.front], axis=1)]
        if len(front) == 0:
            return np.full(len(corners), -1, dtype=np.int64)
        beats = np.ones((len(corners), len(front)), dtype=bool)
        for objective, losses in enumerate(self.losses[front].T):
            corner = corners[:, objective][:, None]
            beats &= (losses < corner) if strict[objective] else (losses <= corner)
            if not known[objective]:
                beats &= front != bounds.witness[:, objective][:, None]
        return np.where(np.any(beats, axis=1), front[np.argmax(beats, axis=1)], -1)


def _extended(front: list[int], losses: Floats, row: int) -> list[int]:
    """Return a front with one more row, without those that it dominates; as it was if one of them is as good."""
    on_front = losses[front]
    if np.any(weakly_dominates(on_front, losses[row])):
        return front
    beaten = dominates(losses[row], on_front)
    return [*(old for old, is_beaten in zip(front, beaten, strict=True) if not is_beaten), row]
