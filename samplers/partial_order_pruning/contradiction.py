"""Finds trained architectures whose losses contradict the partial order so much that they must not be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

# At most so many rows, or this share of them if that is more, are culprits; other violations are noise.
_MIN_CULPRITS, _MAX_SHARE = 3, 0.2


@dataclass(frozen=True)
class Contradictions:
    """Which of ``n`` trained architectures contradict the rest, and how noisy the others are.

    Args:
        rows: Whether each row contradicts the rest in each objective, shape (n, m).
        pairs: The pairs of rows that violate the order by more than noise, for each objective, shape (p, 2) each.
        noise: Root mean square of the violations between all other rows, for each objective, shape (m,).
        n_noisy: Number of these violations, for each objective, shape (m,).
    """

    rows: Booleans
    pairs: Sequence[Integers]
    noise: Floats
    n_noisy: Integers


@dataclass(frozen=True)
class Violations:
    """Pairs of trained architectures that violate the order.

    Args:
        pairs: The rows of each pair, shape (p, 2).
        excess: By how much each pair violates the order in each objective, shape (p, m); not positive if it does not.
    """

    pairs: Integers
    excess: Floats

    def of_first(self, n_rows: int) -> Violations:
        """Return the violations among the first ``n_rows`` rows."""
        among = np.all(self.pairs < n_rows, axis=1)
        return Violations(self.pairs[among], self.excess[among])

    def noise_levels(self, n_rows: int) -> Floats:
        """Return the size up to which a violation is noise, for each objective, shape (m,).

        It is the smallest size, or 0, with which the culprits of all larger violations are at most a fifth of the rows.
        So a few failed trainings are found whatever they scored, and if most rows are slightly off, few are culprits.

        Args:
            n_rows: Number of rows.
        """
        most = max(_MIN_CULPRITS, int(_MAX_SHARE * n_rows))
        levels = np.zeros(self.excess.shape[1])
        for objective, sizes in enumerate(self.excess.T):
            possible = np.unique(np.concatenate([[0.0], sizes[sizes > 0]]))
            first, last = 0, len(possible) - 1
            while first < last:
                middle = (first + last) // 2
                blamed = culprits(self.pairs[sizes > possible[middle]], n_rows, most)
                first, last = (first, middle) if np.count_nonzero(blamed) <= most else (middle + 1, last)
            levels[objective] = possible[first]
        return levels

    def contradictions(self, n_rows: int, noise_levels: Floats) -> Contradictions:
        """Return which rows contradict the rest.

        Args:
            n_rows: Number of rows.
            noise_levels: Size up to which a violation is noise, for each objective, shape (m,).
        """
        beyond = [self.pairs[sizes > level] for sizes, level in zip(self.excess.T, noise_levels, strict=True)]
        rows = np.array([culprits(pairs, n_rows) for pairs in beyond]).T
        noise = np.where(np.any(rows[self.pairs], axis=1), 0.0, np.maximum(self.excess, 0.0))
        n_noisy = np.sum(noise > 0, axis=0)
        mean_square = np.sum(np.square(noise), axis=0) / np.maximum(n_noisy, 1)
        return Contradictions(rows, beyond, np.sqrt(mean_square), n_noisy)


def culprits(pairs: Integers, n_rows: int, most: int | None = None) -> Booleans:
    """Return the rows whose removal leaves no violating pair, as flags of shape (n_rows,).

    The smallest such set is a minimum vertex cover of the graph of pairs. It is approximated greedily: the row in most
    pairs is removed first. A single pair does not show which of its rows is wrong, so a row that is paired with the
    removed one, and is in at least half as many pairs, is removed too.

    Args:
        pairs: Pairs of rows that violate the order, without duplicates, shape (p, 2).
        n_rows: Number of rows.
        most: Stop once more rows than this are found; None to find all.
    """
    both_ways = np.concatenate([pairs, pairs[:, ::-1]])
    both_ways = both_ways[np.argsort(both_ways[:, 0], kind="stable")]
    starts = np.searchsorted(both_ways[:, 0], np.arange(n_rows + 1))
    counts = np.diff(starts)

    def partners(rows: Integers) -> Integers:
        return np.concatenate([both_ways[starts[row] : starts[row + 1], 1] for row in rows])

    removed = np.zeros(n_rows, dtype=bool)
    while np.any(counts) and (most is None or np.count_nonzero(removed) <= most):
        largest = counts.max()
        paired = partners(np.flatnonzero(counts == largest))
        rows = np.union1d(np.flatnonzero(counts == largest), paired[2 * counts[paired] >= largest])
        counts -= np.bincount(partners(rows), minlength=n_rows)
        removed[rows] = True
        counts[removed] = 0
    return removed
