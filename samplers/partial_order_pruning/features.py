"""Encodes proposals as features of the surrogate model."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution

from .replay import position
from .space import Proposal

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# A capacity with at most so many distinct values is encoded by rank: 18, 34, 50, 101 layers are equidistant.
_MAX_RANKS = 32


class Features:
    """Encodes proposals as vectors of equal length, whatever conditional parameters they have.

    The first column is the overall size, the mean of all numerical columns. The numerical columns are the capacities
    (numerical parameters if there is no order), scaled to [0, 1]. Groups and categorical parameters become codes that
    can only be compared for equality. Columns that are constant or redundant are omitted.

    Args:
        proposals: The proposals that determine scales and columns.
    """

    def __init__(self, proposals: Sequence[Proposal]) -> None:
        self._codes: dict[Hashable, int] = {}
        self._has_order = any(proposal.vector for proposal in proposals)
        self._numerical_names: dict[Hashable, int] = {}
        self._categorical_names: dict[Hashable, int] = {}
        for proposal in proposals:
            for name in self._numbers(proposal):
                self._numerical_names.setdefault(name, len(self._numerical_names))
            for name in self._categories(proposal):
                self._categorical_names.setdefault(name, len(self._categorical_names))
        raw = self._raw(proposals)
        self._scales = [_scale(column) for column in raw.T]
        self._kept_numerical = _informative(self._scaled(raw))
        self._kept_categorical = _informative(self._coded(proposals).astype(float))

    @property
    def n_numerical(self) -> int:
        """Number of numerical columns, which are the first ones."""
        return 1 + len(self._kept_numerical)

    def encode(self, proposals: Sequence[Proposal]) -> Floats:
        """Return the features, shape (b, n_numerical + n_categorical)."""
        numbers = self._scaled(self._raw(proposals))[:, self._kept_numerical]
        size = numbers.mean(axis=1, keepdims=True) if numbers.size else np.full((len(proposals), 1), 0.5)
        codes = self._coded(proposals)[:, self._kept_categorical]
        return np.concatenate([size, numbers, codes], axis=1)

    def _numbers(self, proposal: Proposal) -> dict[Hashable, float]:
        if self._has_order:
            length = len(proposal.vector)
            return {(length, index): value for index, value in enumerate(proposal.vector)}
        return {
            name: position(distribution, proposal.params[name])
            for name, distribution in proposal.distributions.items()
            if not isinstance(distribution, CategoricalDistribution)
        }

    def _categories(self, proposal: Proposal) -> dict[Hashable, Hashable]:
        group = proposal.group if isinstance(proposal.group, tuple) else (proposal.group,)
        categories: dict[Hashable, Hashable] = {("group", index): part for index, part in enumerate(group)}
        for name, distribution in proposal.distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                categories[name] = repr(proposal.params[name])
        return categories

    def _raw(self, proposals: Sequence[Proposal]) -> Floats:
        raw = np.full((len(proposals), len(self._numerical_names)), np.nan)
        for row, proposal in enumerate(proposals):
            for name, value in self._numbers(proposal).items():
                if name in self._numerical_names:
                    raw[row, self._numerical_names[name]] = value
        return raw

    def _scaled(self, raw: Floats) -> Floats:
        scaled = np.empty_like(raw)
        for index, (values, positions) in enumerate(self._scales):
            scaled[:, index] = np.interp(raw[:, index], values, positions)
        return np.nan_to_num(scaled, nan=0.5)

    def _coded(self, proposals: Sequence[Proposal]) -> Integers:
        coded = np.full((len(proposals), len(self._categorical_names)), -1, dtype=np.int64)
        for row, proposal in enumerate(proposals):
            for name, value in self._categories(proposal).items():
                if name in self._categorical_names:
                    coded[row, self._categorical_names[name]] = self._codes.setdefault(value, len(self._codes))
        return coded


def _scale(column: Floats) -> tuple[Floats, Floats]:
    """Return values of a column, and their positions in [0, 1], between which other values are interpolated."""
    values = np.unique(column[np.isfinite(column)])
    if len(values) == 0:
        values = np.zeros(1)
    if len(values) > _MAX_RANKS:
        values = values[[0, -1]]
    return values, np.linspace(0.0, 1.0, len(values))


def _informative(columns: Floats) -> list[int]:
    """Return the columns that vary and do not group the rows as an earlier column does."""
    seen, kept = set(), []
    for index, column in enumerate(columns.T):
        _, first, inverse = np.unique(column, return_index=True, return_inverse=True)
        # Distinct values are numbered by first appearance, so that columns with renamed values are equal.
        pattern = np.argsort(np.argsort(first))[inverse.reshape(-1)].tobytes()
        if len(first) > 1 and pattern not in seen:
            seen.add(pattern)
            kept.append(index)
    return kept
