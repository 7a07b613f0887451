"""Reads each trial of a study once, into the archive and the set of tried architectures."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.logging import get_logger
from optuna.trial import FrozenTrial, TrialState

from .archive import Archive
from .optuna_internals import fixed_params
from .space import Proposal, Space
from .surrogate import Fit

Floats = NDArray[np.float64]

_logger = get_logger(f"optuna.{__name__}")

# Names in the database, which must never change.
PROPOSAL = "partial_order_pruning:proposal"
_OUTCOME = "outcome"
_TOO_LARGE = ("too_large", "too_costly", "out_of_memory")


class Record:
    """What the sampler knows of a study; all of it can be rebuilt from the study.

    Args:
        space: Decodes the parameters of trials.
        archive: An empty archive, which is filled with the trained architectures.
        signs: -1 for an objective to maximise, 1 for one to minimise, shape (m,).
    """

    def __init__(self, space: Space, archive: Archive, signs: Floats) -> None:
        self.space = space
        self.archive = archive
        self.signs = signs
        self.tried: set[Hashable] = set()
        self.fits: dict[int, Fit] = {}
        # Proposed parameters of this process's running trials, by number; None if nothing was left to propose.
        self.proposed_params: dict[int, Mapping[str, Any] | None] = {}
        self._n_read = 0
        self._warned = np.zeros(len(signs), dtype=bool)
        self._read_later: set[int] = set()

    def read(self, study: Study, trial: FrozenTrial | None) -> list[Proposal]:
        """Read the trials that have finished since the last call, in O(n) for each.

        Args:
            study: The study.
            trial: The trial to propose parameters for, which is not pending itself; None for no trial.

        Returns:
            The architectures of running and waiting trials, as far as their parameters are known.
        """
        trials = study.get_trials(deepcopy=False)
        finished, pending = [], []
        # Indices in the list of trials, which only grows: all before _n_read had finished, or are in _read_later.
        for index in [*sorted(self._read_later), *range(self._n_read, len(trials))]:
            other = trials[index]
            if other.state.is_finished():
                finished.append(other)
                self._read_later.discard(index)
                continue
            self._read_later.add(index)
            if trial is None or other.number != trial.number:
                pending.append(other)
        self._n_read = len(trials)
        # In the order of completion, so that a restarted sampler has the same archive.
        finished.sort(key=lambda other: (other.datetime_complete, other.number))
        for other in finished:
            self._add(other)
        for objective in np.flatnonzero(self.archive.violated_too_often & ~self._warned):
            _logger.warning(
                f"objective {objective} violates the order for {self.archive.violations[objective]} of "
                f"{self.archive.comparisons} pairs, so its order is not used; if its value falls as capacity grows, "
                f"name it with decreasing=[{objective}]"
            )
        self._warned |= self.archive.violated_too_often
        decoded = [self.decode_pending(other) for other in pending]
        return [proposal for proposal in decoded if proposal is not None]

    def _add(self, trial: FrozenTrial) -> None:
        if trial.state == TrialState.COMPLETE:
            self.space.learn(trial.distributions)
        proposal = self.space.decode(trial.params, trial.distributions) if trial.params else None
        if proposal is not None:
            self.tried.add(proposal.identity)
        if trial.state == TrialState.COMPLETE:
            excess = max(trial.constraints.values(), default=0.0)
            self.archive.add(trial.number, proposal, (self.signs * trial.values).tolist(), excess)
        elif proposal is not None and _is_too_large(trial):
            self.archive.add_too_large(proposal)

    def decode_pending(self, trial: FrozenTrial) -> Proposal | None:
        """Return the architecture of a running or waiting trial; None if not all its parameters are known."""
        params = {**fixed_params(trial), **(trial.system_attrs.get(PROPOSAL) or {}), **trial.params}
        distributions = self.space.distributions(params, trial.distributions)
        return self.space.decode(params, distributions) if params and distributions is not None else None


def _is_too_large(trial: FrozenTrial) -> bool:
    """Return whether the architecture of a trial that was not completed needs too much memory, or costs too much."""
    if _OUTCOME in trial.user_attrs:
        return trial.user_attrs[_OUTCOME] in _TOO_LARGE
    # Older studies do not have this attribute, only a sentence.
    return "out of memory" in str(trial.user_attrs.get("reason", "")).lower()
