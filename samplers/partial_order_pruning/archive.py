"""The archive: all trained architectures of a study, and the bounds that follow for others from the partial order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .contradiction import Contradictions, Violations
from .dominance import dominates, weakly_dominates
from .space import Proposal

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

# The order is not used for an objective if more than this share of at least so many pairs violates it.
_MAX_VIOLATED, _MIN_COMPARISONS = 0.25, 8


def rows_to_fit(n_rows: int) -> int:
    """Return the number of rows, from the first of ``n_rows``, that hyperparameters and noise levels are fitted to.

    It is all up to 32 rows, and then grows in steps of 10 %. It depends on the study alone, so a restarted sampler
    proposes the same.
    """
    if n_rows < 32:
        return n_rows
    fitted = 32
    while (following := fitted + fitted // 10) <= n_rows:
        fitted = following
    return fitted


@dataclass(frozen=True)
class Bounds:
    """Bounds of the losses (lower is better) of ``b`` proposals in ``m`` objectives, by the order.

    Args:
        lower: The best possible losses, shape (b, m); minus infinity where there is no bound.
        upper: The worst possible losses, shape (b, m); infinity where there is no bound.
        witness: Archive row that each lower bound follows from, shape (b, m); -1 where there is no bound.
    """

    lower: Floats
    upper: Floats
    witness: Integers


class _Rows:
    """A growing matrix; appending a row takes O(columns) on average."""

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
    """The trained architectures of one group: capacity vectors, losses and archive rows."""

    def __init__(self, n_capacities: int, n_objectives: int) -> None:
        self.vectors = _Rows(n_capacities)
        self.losses = _Rows(n_objectives)
        self.rows: list[int] = []


class Archive:
    """All trained architectures, which bound the losses of others.

    x precedes y if both are in one group and no capacity of x exceeds that of y. The order assumes that a loss then
    rises (such as a cost) or falls (such as an error or a negated accuracy) from x to y. If the loss of an objective
    rises, the largest loss of the preceding architectures is a lower bound, and the smallest loss of the succeeding
    ones an upper bound; if it falls, it is the other way round.

    Args:
        rises: Whether the loss of each objective rises with capacity, shape (m,).
        tolerance: How far losses of each objective may violate the order, in the objective's unit, shape (m,).
    """

    def __init__(self, rises: Booleans, tolerance: Floats) -> None:
        self._rises = rises
        self._tolerance = tolerance
        self._groups: dict[tuple[Hashable, int], _Group] = {}
        self._too_large: dict[tuple[Hashable, int], list[tuple[float, ...]]] = defaultdict(list)
        self._losses = _Rows(len(rises))
        self._front: list[int] = []
        self.proposals: list[Proposal | None] = []
        self.numbers: list[int] = []
        self.excesses: list[float] = []
        self.learnable: list[int] = []
        self.violations: Integers = np.zeros(len(rises), dtype=np.int64)
        self.comparisons = 0
        # Pairs of rows that violate the order, and by how much in each objective; not positive if they do not.
        self._violating = _Rows(2 + len(rises))
        self._contradictions: dict[int, Contradictions] = {}
        self._noise_levels: dict[int, Floats] = {}

    @property
    def losses(self) -> Floats:
        """The losses of all rows, shape (n, m)."""
        return self._losses.array

    def contradictions_of_first(self, n_rows: int) -> Contradictions:
        """Return which of the first ``n_rows`` rows contradict the others, without regard to later rows."""
        if n_rows not in self._contradictions:
            n_fitted = rows_to_fit(n_rows)
            violations = Violations(self._violating.array[:, :2].astype(np.int64), self._violating.array[:, 2:])
            if n_fitted not in self._noise_levels:
                self._noise_levels[n_fitted] = violations.of_first(n_fitted).noise_levels(n_fitted)
            judged = violations.of_first(n_rows).contradictions(n_rows, self._noise_levels[n_fitted])
            # Callers only need the present rows and those of the latest fit.
            latest = {n: known for n, known in self._contradictions.items() if n == max(self._contradictions)}
            self._contradictions = {**latest, n_rows: judged}
        return self._contradictions[n_rows]

    @property
    def contradictions(self) -> Contradictions:
        """The rows that contradict the others."""
        return self.contradictions_of_first(len(self.numbers))

    @property
    def violated_too_often(self) -> Booleans:
        """Whether so many pairs violate the order in each objective that it is not used, shape (m,).

        Pairs with a row that contradicts the rest do not count.
        """
        many = self.comparisons >= _MIN_COMPARISONS
        return many & (self.contradictions.n_noisy > _MAX_VIOLATED * self.comparisons)

    @property
    def slack(self) -> Floats:
        """How much the bounds are loosened in each objective, shape (m,).

        It is the tolerance plus the root mean square of the violations beyond it, without rows that contradict the
        rest; infinity if the order is violated too often. Without violations it is the tolerance.
        """
        return np.where(self.violated_too_often, np.inf, self._tolerance + self.contradictions.noise)

    @property
    def _uninformative(self) -> Booleans:
        """The losses that no bound follows from, shape (n, m): those that contradict the rest, and a shared worst loss.

        If several rows share the worst loss, such as a mean average precision of zero, nothing was learned: by a small
        architecture for lack of capacity, or by a large one because its training failed.
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

    def add(self, number: int, proposal: Proposal | None, losses: Sequence[float], excess: float) -> None:
        """Add a trained architecture in O(n).

        Args:
            number: Number of its trial.
            proposal: The trained architecture; None if it is not in the search space, so that no bounds follow.
            losses: Losses, shape (m,).
            excess: The largest value of its constraints; if it is positive, the architecture is not feasible and not
                part of the front.
        """
        row = len(self.numbers)
        self._losses.append(losses)
        self.proposals.append(proposal)
        self.numbers.append(number)
        self.excesses.append(excess)
        if proposal is not None and np.all(np.isfinite(losses)):
            self.learnable.append(row)
        if excess <= 0:
            self._front = _extended(self._front, self.losses, row)
        if proposal is not None and proposal.vector:
            self._add_to_group(row, proposal, np.asarray(losses, dtype=float))
            # Smaller ones fit too, even if they ran out of memory before, with less memory or beside other processes.
            too_large = self._too_large[proposal.group, len(proposal.vector)]
            too_large[:] = [vector for vector in too_large if np.any(np.array(vector) > proposal.vector)]

    def _add_to_group(self, row: int, proposal: Proposal, losses: Floats) -> None:
        key = proposal.group, len(proposal.vector)
        if key not in self._groups:
            self._groups[key] = _Group(len(proposal.vector), len(losses))
        group = self._groups[key]
        vector = np.array(proposal.vector)
        below = np.all(group.vectors.array <= vector, axis=1)
        above = np.all(group.vectors.array >= vector, axis=1)
        # A rising loss must be no smaller than that of preceding rows, and no larger than that of succeeding ones.
        sign = np.where(self._rises, 1.0, -1.0)
        rise = sign * (losses - group.losses.array)
        excess = np.where(below[:, None], -rise, rise) - self._tolerance
        for index in np.flatnonzero((below | above) & np.any(excess > 0, axis=1)):
            self._violating.append([group.rows[index], row, *excess[index]])
            self.violations += excess[index] > 0
        self.comparisons += int(np.sum(below | above))
        group.vectors.append(proposal.vector)
        group.losses.append(losses.tolist())
        group.rows.append(row)

    def add_too_large(self, proposal: Proposal) -> None:
        """Add an architecture that needs too much memory, or costs too much.

        No larger one is proposed, unless such a one has been trained.
        """
        key = proposal.group, len(proposal.vector)
        if key in self._groups and np.any(np.all(self._groups[key].vectors.array >= proposal.vector, axis=1)):
            return
        if proposal.vector:
            self._too_large[key].append(proposal.vector)

    def is_too_large(self, proposal: Proposal) -> bool:
        """Return whether a proposal is at least as large as one that was added as too large."""
        vectors = self._too_large.get((proposal.group, len(proposal.vector)))
        return bool(vectors) and bool(np.any(np.all(np.array(vectors) <= proposal.vector, axis=1)))

    def bounds(self, proposals: Sequence[Proposal]) -> Bounds:
        """Return lower and upper bounds of the losses of proposals."""
        shape = len(proposals), len(self._rises)
        bounds = Bounds(np.full(shape, -np.inf), np.full(shape, np.inf), np.full(shape, -1, dtype=np.int64))
        of_group = defaultdict(list)
        for index, proposal in enumerate(proposals):
            of_group[proposal.group, len(proposal.vector)].append(index)
        for key, indices in of_group.items():
            if key in self._groups:
                vectors = np.array([proposals[index].vector for index in indices])
                self._bound_group(self._groups[key], vectors, np.array(indices), bounds)
        return bounds

    def _bound_group(self, group: _Group, vectors: Floats, indices: Integers, bounds: Bounds) -> None:
        shape = len(vectors), len(group.rows)
        below, above = np.ones(shape, dtype=bool), np.ones(shape, dtype=bool)
        # One capacity at a time, to save memory: an array of proposals x rows x capacities may be large.
        for mine, theirs in zip(vectors.T, group.vectors.array.T, strict=True):
            below &= theirs <= mine[:, None]
            above &= theirs >= mine[:, None]
        rows = np.array(group.rows)
        informative = ~self._uninformative[rows]
        for objective, (rises, slack) in enumerate(zip(self._rises, self.slack, strict=True)):
            losses = group.losses.array[:, objective]
            at_least = np.where((below if rises else above) & informative[:, objective], losses, -np.inf)
            best = np.argmax(at_least, axis=1)
            lower = at_least[np.arange(len(best)), best]
            bounds.lower[indices, objective] = lower - slack
            bounds.witness[indices, objective] = np.where(np.isfinite(lower), rows[best], -1)
            bounds.upper[indices, objective] = (
                np.min(np.where((above if rises else below) & informative[:, objective], losses, np.inf), axis=1)
                + slack
            )

    def dominators(self, corners: Floats, bounds: Bounds, known: Booleans) -> Integers:
        """Return a row for each proposal that dominates even its best possible losses, or -1; shape (b,).

        As in the paper (Li et al., CVPR 2019), x is dominated if some trained y that x precedes and some trained z
        other than y have accuracy(z) >= accuracy(y) and cost(z) < cost(x). An equal cost does not prune. If no
        objective is a cost, z must be strictly better in all.

        Args:
            corners: The best possible losses, shape (b, m): known losses, and lower bounds of the others.
            bounds: Bounds of the same proposals.
            known: Whether the losses of each objective are known exactly, shape (m,).
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
    """Return a front with one more row and without those that it dominates; unchanged if one is at least as good."""
    on_front = losses[front]
    if np.any(weakly_dominates(on_front, losses[row])):
        return front
    beaten = dominates(losses[row], on_front)
    return [*(old for old, is_beaten in zip(front, beaten, strict=True) if not is_beaten), row]
