"""The screen before every proposal: new, not too large, and not provably dominated."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .archive import Archive, Bounds
from .space import Candidate

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

_MAX_CACHED = 100_000


class KnownLosses:
    """The losses that are known before training, computed once for each architecture.

    Args:
        functions: ``{objective index: architecture -> value}``.
    """

    def __init__(self, functions: Mapping[int, Callable[[Any], float]]) -> None:
        self.functions = dict(functions)
        self._cached: dict[Hashable, tuple[float, ...]] = {}

    def __call__(self, candidates: Sequence[Candidate], signs: Floats) -> Floats:
        """Return losses, shape (b, m); NaN where nothing is known.

        Args:
            candidates: ``b`` of them.
            signs: -1 for an objective to maximise, 1 for one to minimise, shape (m,).
        """
        losses = np.full((len(candidates), len(signs)), np.nan)
        if not self.functions:
            return losses
        for row, candidate in enumerate(candidates):
            values = self._cached.get(candidate.identity)
            if values is None:
                values = tuple(float(function(candidate.architecture)) for function in self.functions.values())
                if len(self._cached) >= _MAX_CACHED:
                    self._cached.clear()
                self._cached[candidate.identity] = values
            losses[row, list(self.functions)] = values
        return losses * signs

    def objectives(self, n_objectives: int) -> Booleans:
        """Say for each objective whether it is known, shape (m,).

        Raises:
            ValueError: A known objective is not one of the study's.
        """
        known = np.zeros(n_objectives, dtype=bool)
        for objective in self.functions:
            if not 0 <= objective < n_objectives:
                raise ValueError(f"known_objectives: {objective} is not one of the study's {n_objectives} objectives")
            known[objective] = True
        return known


@dataclass(frozen=True)
class Screened:
    """Candidates that passed, with what is known of them.

    Args:
        candidates: ``b`` of them.
        known: Known losses, NaN where unknown, shape (b, m).
        bounds: Of all losses.
    """

    candidates: list[Candidate]
    known: Floats
    bounds: Bounds


class Screen:
    """Lets through what is worth training.

    Args:
        archive: Of what has been trained.
        known_losses: What is known before training.
        signs: Of the objectives, shape (m,).
        taken: Identities of finished and running architectures.
    """

    def __init__(self, archive: Archive, known_losses: KnownLosses, signs: Floats, taken: Container[Hashable]) -> None:
        self._archive = archive
        self._known_losses = known_losses
        self._signs = signs
        self._taken = taken
        self._seen: set[Hashable] = set()

    def __call__(self, candidates: Sequence[Candidate]) -> Screened:
        """Return those of the candidates that pass and have not passed through this screen before."""
        new = []
        for candidate in candidates:
            if candidate.identity in self._taken or candidate.identity in self._seen:
                continue
            self._seen.add(candidate.identity)
            if not self._archive.is_too_large(candidate):
                new.append(candidate)
        appraised = self.appraise(new)
        known, bounds = appraised.known, appraised.bounds
        is_known = self._known_losses.objectives(len(self._signs))
        corners = np.where(is_known, known, bounds.lower)
        passed = self._archive.dominators(corners, bounds, is_known) < 0
        return Screened(
            [candidate for candidate, passes in zip(new, passed, strict=True) if passes],
            known[passed],
            Bounds(bounds.lower[passed], bounds.upper[passed], bounds.witness[passed]),
        )

    def appraise(self, candidates: Sequence[Candidate]) -> Screened:
        """Return all of the candidates with what is known of them, whether they pass or not."""
        return Screened(list(candidates), self._known_losses(candidates, self._signs), self._archive.bounds(candidates))


def join(parts: Sequence[Screened]) -> Screened:
    """Return several lots of screened candidates as one."""
    return Screened(
        [candidate for part in parts for candidate in part.candidates],
        np.concatenate([part.known for part in parts]),
        Bounds(
            np.concatenate([part.bounds.lower for part in parts]),
            np.concatenate([part.bounds.upper for part in parts]),
            np.concatenate([part.bounds.witness for part in parts]),
        ),
    )
