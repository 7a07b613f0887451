"""What a study's trials say, read once each: the archive, what has been tried, what is running."""

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
from .space import Candidate, Space
from .surrogate import Fit

Floats = NDArray[np.float64]

_logger = get_logger(f"optuna.{__name__}")

# Names in the database; they must never change, nor be derived from a class's name.
PROPOSAL = "partial_order_pruning:proposal"
_OUTCOME = "outcome"
_TOO_LARGE = ("too_large", "out_of_memory")


class Record:
    """Follows one study, trial by trial; everything in it can be made anew from the study.

    Args:
        space: Decodes trials.
        archive: To be filled.
        signs: -1 for an objective to maximise, 1 for one to minimise, shape (m,).
    """

    def __init__(self, space: Space, archive: Archive, signs: Floats) -> None:
        self.space = space
        self.archive = archive
        self.signs = signs
        self.tried: set[Hashable] = set()
        self.fits: dict[int, Fit] = {}
        # Of this process's trials that are under way, by number; None where nothing was left to propose.
        self.proposals: dict[int, Mapping[str, Any] | None] = {}
        self._n_read = 0
        self._warned = np.zeros(len(signs), dtype=bool)
        self._read_later: set[int] = set()

    def read(self, study: Study, trial: FrozenTrial | None) -> list[Candidate]:
        """Take in what has finished since the last time; O(n) for each new trial.

        Args:
            study: The study.
            trial: The one that asks; it is not pending itself.

        Returns:
            What is being trained or waits for it, as far as it is known.
        """
        trials = study.get_trials(deepcopy=False)
        finished, pending = [], []
        # Places in the list of trials, which only grows: those before _n_read had finished or were noted for later.
        for place in [*sorted(self._read_later), *range(self._n_read, len(trials))]:
            other = trials[place]
            if other.state.is_finished():
                finished.append(other)
                self._read_later.discard(place)
                continue
            self._read_later.add(place)
            if trial is None or other.number != trial.number:
                pending.append(other)
        self._n_read = len(trials)
        # In the order of completion, so that a restarted sampler has the same archive.
        finished.sort(key=lambda other: (other.datetime_complete, other.number))
        for other in finished:
            self._take_in(other)
        for objective in np.flatnonzero(self.archive.untrue & ~self._warned):
            _logger.warning(
                f"objective {objective} violates the order for {self.archive.violations[objective]} of "
                f"{self.archive.comparisons} pairs, so its order is not used; if its value falls as capacity grows, "
                f"name it with decreasing=[{objective}]"
            )
        self._warned |= self.archive.untrue
        decoded = [self.decode_pending(other) for other in pending]
        return [candidate for candidate in decoded if candidate is not None]

    def _take_in(self, trial: FrozenTrial) -> None:
        if trial.state == TrialState.COMPLETE:
            self.space.learn(trial.distributions)
        candidate = self.space.decode(trial.params, trial.distributions) if trial.params else None
        if candidate is not None:
            self.tried.add(candidate.identity)
        if trial.state == TrialState.COMPLETE:
            excess = max(trial.constraints.values(), default=0.0)
            self.archive.add(trial.number, candidate, (self.signs * trial.values).tolist(), excess)
        elif candidate is not None and _is_too_large(trial):
            self.archive.add_too_large(candidate)

    def decode_pending(self, trial: FrozenTrial) -> Candidate | None:
        """Return what a running or waiting trial trains; None while that is open."""
        params = {**fixed_params(trial), **(trial.system_attrs.get(PROPOSAL) or {}), **trial.params}
        distributions = self.space.distributions(params, trial.distributions)
        return self.space.decode(params, distributions) if params and distributions is not None else None


def _is_too_large(trial: FrozenTrial) -> bool:
    """Say whether a trial that was not completed did not fit into memory."""
    if _OUTCOME in trial.user_attrs:
        return trial.user_attrs[_OUTCOME] in _TOO_LARGE
    # Studies from before there was this attribute have only a sentence. Nothing writes it for this any more.
    return "out of memory" in str(trial.user_attrs.get("reason", "")).lower()
