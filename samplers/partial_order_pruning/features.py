"""Architectures as numbers: what a surrogate is told of a candidate."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution

from .replay import position
from .space import Candidate

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Up to this many distinct values a capacity counts by rank: 18, 34, 50, 101 layers are four equal steps.
_MAX_RANKS = 32


class Features:
    """Encodes candidates alike, whatever their conditional parameters.

    Ordered capacities (without an order: numerical parameters) are scaled to [0, 1], and their mean, the overall size,
    comes first of all; groups and categorical parameters become codes, of which only equality means something. Columns
    that do not vary, or that say the same as another, are left out.

    Args:
        candidates: Those that determine scales and columns.
    """

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._codes: dict[Hashable, int] = {}
        self._has_order = any(candidate.vector for candidate in candidates)
        self._numerical_names: dict[Hashable, int] = {}
        self._categorical_names: dict[Hashable, int] = {}
        for candidate in candidates:
            for name in self._numbers(candidate):
                self._numerical_names.setdefault(name, len(self._numerical_names))
            for name in self._categories(candidate):
                self._categorical_names.setdefault(name, len(self._categorical_names))
        raw = self._raw(candidates)
        self._scales = [_scale(column) for column in raw.T]
        self._kept_numerical = _informative(self._scaled(raw))
        self._kept_categorical = _informative(self._coded(candidates).astype(float))

    @property
    def n_numerical(self) -> int:
        """How many numerical columns there are; they come first."""
        return 1 + len(self._kept_numerical)

    def encode(self, candidates: Sequence[Candidate]) -> Floats:
        """Return the features, shape (b, n_numerical + n_categorical)."""
        numbers = self._scaled(self._raw(candidates))[:, self._kept_numerical]
        size = numbers.mean(axis=1, keepdims=True) if numbers.size else np.full((len(candidates), 1), 0.5)
        codes = self._coded(candidates)[:, self._kept_categorical]
        return np.concatenate([size, numbers, codes], axis=1)

    def _numbers(self, candidate: Candidate) -> dict[Hashable, float]:
        if self._has_order:
            length = len(candidate.vector)
            return {(length, index): value for index, value in enumerate(candidate.vector)}
        return {
            name: position(distribution, candidate.params[name])
            for name, distribution in candidate.distributions.items()
            if not isinstance(distribution, CategoricalDistribution)
        }

    def _categories(self, candidate: Candidate) -> dict[Hashable, Hashable]:
        group = candidate.group if isinstance(candidate.group, tuple) else (candidate.group,)
        categories: dict[Hashable, Hashable] = {("group", index): part for index, part in enumerate(group)}
        for name, distribution in candidate.distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                categories[name] = repr(candidate.params[name])
        return categories

    def _raw(self, candidates: Sequence[Candidate]) -> Floats:
        raw = np.full((len(candidates), len(self._numerical_names)), np.nan)
        for row, candidate in enumerate(candidates):
            for name, value in self._numbers(candidate).items():
                if name in self._numerical_names:
                    raw[row, self._numerical_names[name]] = value
        return raw

    def _scaled(self, raw: Floats) -> Floats:
        scaled = np.empty_like(raw)
        for index, (values, places) in enumerate(self._scales):
            scaled[:, index] = np.interp(raw[:, index], values, places)
        return np.nan_to_num(scaled, nan=0.5)

    def _coded(self, candidates: Sequence[Candidate]) -> Integers:
        coded = np.full((len(candidates), len(self._categorical_names)), -1, dtype=np.int64)
        for row, candidate in enumerate(candidates):
            for name, value in self._categories(candidate).items():
                if name in self._categorical_names:
                    coded[row, self._categorical_names[name]] = self._codes.setdefault(value, len(self._codes))
        return coded


def _scale(column: Floats) -> tuple[Floats, Floats]:
    """Return the points between which values of a column are interpolated to [0, 1]."""
    values = np.unique(column[np.isfinite(column)])
    if len(values) == 0:
        values = np.zeros(1)
    if len(values) > _MAX_RANKS:
        values = values[[0, -1]]
    return values, np.linspace(0.0, 1.0, len(values))


def _informative(columns: Floats) -> list[int]:
    """Return the columns that vary and that do not part the rows just as an earlier one does."""
    seen, kept = set(), []
    for index, column in enumerate(columns.T):
        _, first, inverse = np.unique(column, return_index=True, return_inverse=True)
        # Number the distinct values by first appearance, so that mere renaming makes no difference.
        pattern = np.argsort(np.argsort(first))[inverse.reshape(-1)].tobytes()
        if len(first) > 1 and pattern not in seen:
            seen.add(pattern)
            kept.append(index)
    return kept
