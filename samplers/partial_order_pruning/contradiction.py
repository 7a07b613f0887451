"""Which trained architectures contradict the partial order so much that nothing may follow from what they scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

# At most so many rows, or this share of them, are set aside; the violations that are left are taken for noise.
_MIN_CULPRITS, _MAX_SHARE = 3, 0.2


@dataclass(frozen=True)
class Contradictions:
    """What the violations of the order among ``n`` trained architectures say of each of them.

    Args:
        rows: Which of them contradict the rest in which objective, shape (n, m).
        pairs: For each objective the pairs of rows that violate the order by more than noise, shape (p, 2) each.
        noise: For each objective the root mean square of the violations between all other rows, shape (m,).
        n_noisy: For each objective how many such violations there are, shape (m,).
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
        excess: By how much each violates the order of each objective; not positive where it does not, shape (p, m).
    """

    pairs: Integers
    excess: Floats

    def of_first(self, n_rows: int) -> Violations:
        """Return those among the first ``n_rows`` rows."""
        among = np.all(self.pairs < n_rows, axis=1)
        return Violations(self.pairs[among], self.excess[among])

    def noise_levels(self, n_rows: int) -> Floats:
        """Return for each objective up to which size a violation is taken for noise, shape (m,).

        That is the smallest violation, or none at all, beyond which the culprits are at most a fifth of the rows. So a
        few trainings that went wrong are found however far off they are; where most rows are a little off, few are
        blamed.

        Args:
            n_rows: How many rows there are.
        """
        most = max(_MIN_CULPRITS, int(_MAX_SHARE * n_rows))
        levels = np.zeros(self.excess.shape[1])
        for objective, sizes in enumerate(self.excess.T):
            possible = np.unique(np.concatenate([[0.0], sizes[sizes > 0]]))
            first, last = 0, len(possible) - 1
            while first < last:
                middle = (first + last) // 2
                found = culprits(self.pairs[sizes > possible[middle]], n_rows, most)
                first, last = (first, middle) if np.count_nonzero(found) <= most else (middle + 1, last)
            levels[objective] = possible[first]
        return levels

    def contradictions(self, n_rows: int, noise_levels: Floats) -> Contradictions:
        """Judge the rows.

        Args:
            n_rows: How many there are.
            noise_levels: For each objective up to which size a violation is taken for noise, shape (m,).
        """
        beyond = [self.pairs[sizes > level] for sizes, level in zip(self.excess.T, noise_levels, strict=True)]
        rows = np.array([culprits(pairs, n_rows) for pairs in beyond]).T
        noise = np.where(np.any(rows[self.pairs], axis=1), 0.0, np.maximum(self.excess, 0.0))
        n_noisy = np.sum(noise > 0, axis=0)
        mean_square = np.sum(np.square(noise), axis=0) / np.maximum(n_noisy, 1)
        return Contradictions(rows, beyond, np.sqrt(mean_square), n_noisy)


def culprits(pairs: Integers, n_rows: int, most: int | None = None) -> Booleans:
    """Return which rows to set aside so that no pair is left, shape (n_rows,).

    The smallest such set is a minimum vertex cover of the graph of pairs. As in the greedy approximation of it, the row
    that is in most pairs goes first. One pair alone does not tell which of two is wrong, so what is in half as many
    pairs or more as a row that it is paired with goes with that row.

    Args:
        pairs: Pairs of rows that violate the order, each once, shape (p, 2).
        n_rows: How many rows there are.
        most: Beyond so many it does not look for more.
    """
    both_ways = np.concatenate([pairs, pairs[:, ::-1]])
    both_ways = both_ways[np.argsort(both_ways[:, 0], kind="stable")]
    starts = np.searchsorted(both_ways[:, 0], np.arange(n_rows + 1))
    counts = np.diff(starts)

    def partners(rows: Integers) -> Integers:
        return np.concatenate([both_ways[starts[row] : starts[row + 1], 1] for row in rows])

    found = np.zeros(n_rows, dtype=bool)
    while np.any(counts) and (most is None or np.count_nonzero(found) <= most):
        largest = counts.max()
        beside = partners(np.flatnonzero(counts == largest))
        going = np.union1d(np.flatnonzero(counts == largest), beside[2 * counts[beside] >= largest])
        counts -= np.bincount(partners(going), minlength=n_rows)
        found[going] = True
        counts[found] = 0
    return found
