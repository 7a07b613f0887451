"""Screens proposals: those that are new, not too large, and not provably dominated pass."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .archive import Archive, Bounds
from .space import Proposal

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

_MAX_CACHED = 100_000


class KnownLosses:
    """Computes the losses that are known before training, once for each architecture.

    Args:
        functions: ``{objective index: architecture -> value}``.
    """

    def __init__(self, functions: Mapping[int, Callable[[Any], float]]) -> None:
        self.functions = dict(functions)
        self._cached: dict[Hashable, tuple[float, ...]] = {}

    def __call__(self, proposals: Sequence[Proposal], signs: Floats) -> Floats:
        """Return the losses of proposals, shape (b, m); NaN for objectives that are not known.

        Args:
            proposals: The ``b`` proposals.
            signs: -1 for an objective to maximise, 1 for one to minimise, shape (m,).
        """
        losses = np.full((len(proposals), len(signs)), np.nan)
        if not self.functions:
            return losses
        for row, proposal in enumerate(proposals):
            values = self._cached.get(proposal.identity)
            if values is None:
                values = tuple(float(function(proposal.architecture)) for function in self.functions.values())
                if len(self._cached) >= _MAX_CACHED:
                    self._cached.clear()
                self._cached[proposal.identity] = values
            losses[row, list(self.functions)] = values
        return losses * signs

    def objectives(self, n_objectives: int) -> Booleans:
        """Return whether each objective is known before training, shape (m,).

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
    """Proposals that have passed, with their known losses and bounds.

    Args:
        proposals: The ``b`` proposals.
        known: Losses that are known before training, shape (b, m); NaN for others.
        bounds: Bounds of all losses.
    """

    proposals: list[Proposal]
    known: Floats
    bounds: Bounds


class Screen:
    """Selects the proposals that may be worth training.

    Args:
        archive: The trained architectures.
        known_losses: Computes the losses that are known before training.
        signs: -1 for an objective to maximise, 1 for one to minimise, shape (m,).
        taken: Identities of the architectures of finished, running and waiting trials.
    """

    def __init__(self, archive: Archive, known_losses: KnownLosses, signs: Floats, taken: Container[Hashable]) -> None:
        self._archive = archive
        self._known_losses = known_losses
        self._signs = signs
        self._taken = taken
        self._seen: set[Hashable] = set()

    def __call__(self, proposals: Sequence[Proposal]) -> Screened:
        """Return the proposals that pass and that this screen has not seen before."""
        new = []
        for proposal in proposals:
            if proposal.identity in self._taken or proposal.identity in self._seen:
                continue
            self._seen.add(proposal.identity)
            if not self._archive.is_too_large(proposal):
                new.append(proposal)
        appraised = self.appraise(new)
        known, bounds = appraised.known, appraised.bounds
        is_known = self._known_losses.objectives(len(self._signs))
        corners = np.where(is_known, known, bounds.lower)
        passed = self._archive.dominators(corners, bounds, is_known) < 0
        return Screened(
            [proposal for proposal, passes in zip(new, passed, strict=True) if passes],
            known[passed],
            Bounds(bounds.lower[passed], bounds.upper[passed], bounds.witness[passed]),
        )

    def appraise(self, proposals: Sequence[Proposal]) -> Screened:
        """Return all proposals, whether they pass or not, with their known losses and bounds."""
        return Screened(list(proposals), self._known_losses(proposals, self._signs), self._archive.bounds(proposals))


def join(parts: Sequence[Screened]) -> Screened:
    """Concatenate screened proposals."""
    return Screened(
        [proposal for part in parts for proposal in part.proposals],
        np.concatenate([part.known for part in parts]),
        Bounds(
            np.concatenate([part.bounds.lower for part in parts]),
            np.concatenate([part.bounds.upper for part in parts]),
            np.concatenate([part.bounds.witness for part in parts]),
        ),
    )
