"""The sampler: an Optuna sampler that uses a partial order over architectures."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from itertools import islice
from threading import RLock
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from optuna import Study, Trial, TrialPruned
from optuna.distributions import BaseDistribution
from optuna.logging import get_logger
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from .archive import Archive, rows_to_fit
from .optuna_internals import fixed_params, set_system_attr
from .record import PROPOSAL, Record
from .replay import MISSING, draw, value_of
from .screen import KnownLosses, Screen, Screened
from .selection import Situation, evolve, improve, mean_capacity, random_candidates, spread
from .space import Candidate, Order, SearchSpace, Space
from .surrogate import Surrogate, fit

_logger = get_logger(f"optuna.{__name__}")

# Two workers that ask at once may meet at one candidate; then they ask again, at most so often.
_MAX_ATTEMPTS = 20
# How many architectures are looked at one by one before a space is taken to have one left that can be tried.
_MAX_ENUMERATED = 100_000
_EXHAUSTED = "every architecture of the search space has been evaluated or is provably dominated"


class PartialOrderPruningSampler(BaseSampler):
    """Sampler for search spaces in which bigger is better and dearer.

    Before a trial starts, whole candidates are made by replaying ``search_space``, decoded to architectures,
    deduplicated against all finished and running trials, bounded by the partial order, and stopped if they are
    provably dominated; of the others one is proposed. Without arguments it works on any study.

    The order says that the value of an objective does not fall from x to a y that x precedes: accuracy and cost grow
    with capacity. Objectives whose value falls as capacity grows, such as an error rate, are named by
    ``decreasing``.

    A trial that was not completed and whose user attribute ``outcome`` is ``"too_large"`` or ``"out_of_memory"`` bounds
    what fits into memory: nothing at least as large is proposed again, unless something as large has been trained.

    What contradicts the rest of the order, such as a large network whose training diverged, bounds nothing, and the
    surrogate hardly learns from it. If two contradict each other and nothing tells which is wrong, neither bounds
    anything. What is left of the violations is taken for noise, and its root mean square is tolerated.

    Args:
        search_space: ``trial -> architecture``, the very function that the objective calls; it may raise
            :class:`optuna.TrialPruned` for an invalid combination. None: the architecture is the dictionary of
            parameters, and candidates are made from what trials have asked for so far.
        order: ``architecture -> (group, vector)``. x precedes y if their groups are equal and x's vector is
            componentwise at most y's. None: nothing is comparable.
        known_objectives: ``{objective index: architecture -> value}``, what is known before training.
        selection: ``"ehvi"`` ranks many candidates by expected hypervolume improvement; ``"evolution"`` mutates the
            Pareto front, as the paper does (Li et al., "Partial Order Pruning", CVPR 2019).
        n_startup_trials: How many trials to spread over the space first.
        tolerance: How far values may violate the order, in their unit: one number for all objectives or one for each.
            ``math.inf`` switches all pruning off.
        decreasing: Indices of objectives whose value falls as capacity grows.
        exclusive: Whether the caller lets one worker at a time ask, from before the trial is created until all its
            parameters are chosen. Then no proposal has to be compared with those of workers that ask meanwhile.
        seed: For random numbers. Same seed, same study: same proposals.
    """

    def __init__(
        self,
        search_space: SearchSpace | None = None,
        order: Order | None = None,
        known_objectives: Mapping[int, Callable[[Any], float]] | None = None,
        *,
        selection: Literal["ehvi", "evolution"] = "ehvi",
        n_startup_trials: int = 10,
        tolerance: float | Sequence[float] = 0.0,
        decreasing: Collection[int] = (),
        exclusive: bool = False,
        seed: int | None = None,
    ) -> None:
        if selection not in ("ehvi", "evolution"):
            raise ValueError(f"selection must be 'ehvi' or 'evolution', but got {selection!r}")
        if n_startup_trials < 1:
            raise ValueError(f"n_startup_trials must be at least 1, but got {n_startup_trials}")
        if not np.all(np.asarray(tolerance, dtype=float) >= 0):
            raise ValueError(f"tolerance must not be negative, but got {tolerance}")
        self._search_space = search_space
        self._order = order
        self._known_losses = KnownLosses(known_objectives or {})
        self._selection = selection
        self._n_startup_trials = n_startup_trials
        self._tolerance = tolerance
        self._decreasing = frozenset(decreasing)
        self._exclusive = exclusive
        self._seed = _new_seed() if seed is None else seed
        self._records: WeakKeyDictionary[Study, Record] = WeakKeyDictionary()
        self._lock = RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_records", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _records=WeakKeyDictionary(), _lock=RLock())

    def reseed_rng(self) -> None:
        """Take a new random seed."""
        self._seed = _new_seed()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return nothing: proposals are handed out name by name, so that a parameter's distribution may change."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the proposed values of all parameters of ``search_space``."""
        return {
            name: self.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
        }

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the proposed value; a random one for a parameter that the proposal lacks or that has changed.

        Raises:
            optuna.TrialPruned: The search space is exhausted, and the study is being stopped.
        """
        proposal = self._proposal_of(study, trial)
        if proposal is None:
            raise TrialPruned(_EXHAUSTED)
        proposed = value_of(proposal, param_name, param_distribution)
        if proposed is MISSING:
            return draw(param_distribution, random.Random(f"{self._seed} {trial.number} {param_name}"))
        return proposed

    def _proposal_of(self, study: Study, trial: FrozenTrial) -> Mapping[str, Any] | None:
        """Return what was proposed for a trial; None if nothing is left to propose."""
        with self._lock:
            proposals = self._record(study).proposals
            if trial.number not in proposals:
                # Optuna reads these attributes from the database each time that they are looked at.
                proposals[trial.number] = trial.system_attrs.get(PROPOSAL, {})
            return proposals[trial.number]

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Forget what was proposed for the trial."""
        with self._lock:
            self._record(study).proposals.pop(trial.number, None)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Propose a whole candidate and store it with the trial, where other workers see it before training."""
        if PROPOSAL in trial.system_attrs:
            return
        with self._lock:
            record = self._record(study)
            pending = record.read(study, trial)
            if not record.space.is_known or record.decode_pending(trial) is not None:
                return
            for attempt in range(_MAX_ATTEMPTS):
                taken = _identities(record, pending)
                candidate = self._propose(record, pending, taken, trial, attempt)
                if candidate is None:
                    self._stop(study, trial)
                    return
                set_system_attr(study, trial, PROPOSAL, candidate.params)
                record.proposals[trial.number] = candidate.params
                if self._exclusive:
                    return
                # Each worker writes first and then looks, so of two that meet at one candidate at least one sees it,
                # even if the other's trial has finished meanwhile.
                pending = record.read(study, trial)
                if candidate.identity not in _identities(record, pending) - taken:
                    return

    def _stop(self, study: Study, trial: FrozenTrial) -> None:
        if self._search_space is None or fixed_params(trial):
            return
        try:
            study.stop()
        except RuntimeError:
            # Asked from outside of study.optimize: there is nothing to stop, and the trial goes on at random.
            _logger.warning(f"{_EXHAUSTED}; trial {trial.number} is random")
            return
        set_system_attr(study, trial, PROPOSAL, None)
        self._record(study).proposals[trial.number] = None
        _logger.info(f"{_EXHAUSTED}: the study stops")

    def _record(self, study: Study) -> Record:
        if study not in self._records:
            signs = np.array([-1.0 if way == StudyDirection.MAXIMIZE else 1.0 for way in study.directions])
            rises = (signs > 0) != np.isin(np.arange(len(signs)), list(self._decreasing))
            if np.ndim(self._tolerance) and len(np.atleast_1d(self._tolerance)) != len(signs):
                raise ValueError(
                    f"tolerance must have one value for each of {len(signs)} objectives: {self._tolerance}"
                )
            tolerance = np.broadcast_to(np.asarray(self._tolerance, dtype=float), signs.shape)
            space = Space(self._search_space, self._order)
            self._records[study] = Record(space, Archive(rises, tolerance), signs)
        return self._records[study]

    def _propose(
        self, record: Record, pending: list[Candidate], taken: set[Hashable], trial: FrozenTrial, attempt: int
    ) -> Candidate | None:
        archive = record.archive
        screen = Screen(archive, self._known_losses, record.signs, taken)
        rng = random.Random(f"{self._seed} {trial.number} {attempt}")
        situation = Situation(record.space, archive, pending, screen, fixed_params(trial), rng)
        candidate = self._select(record, situation, attempt)
        return candidate or self._any_left(record, taken, situation)

    def _select(self, record: Record, situation: Situation, attempt: int) -> Candidate | None:
        archive = situation.archive
        n_started = len(archive.numbers) + len(situation.pending)
        if n_started < self._n_startup_trials:
            return spread(situation, self._size, _place(n_started, self._n_startup_trials))
        if self._selection == "evolution":
            return evolve(situation)
        modelled = np.flatnonzero(~self._known_losses.objectives(len(record.signs))).tolist()
        n_fitted = rows_to_fit(len(archive.numbers))
        if bisect_left(archive.learnable, n_fitted) < 2:
            return evolve(situation)
        if n_fitted not in record.fits:
            record.fits = {n_fitted: fit(archive, n_fitted, modelled)}
        return improve(situation, Surrogate(archive, record.fits[n_fitted], modelled), 2 * attempt)

    def _size(self, screened: Screened) -> NDArray[np.float64]:
        """Return what a start design is spread over: a known objective, else the mean capacity, else nothing."""
        if self._known_losses.functions:
            return screened.known[:, min(self._known_losses.functions)]
        return mean_capacity(screened.candidates)

    def _any_left(self, record: Record, taken: Collection[Hashable], situation: Situation) -> Candidate | None:
        """Return some candidate where chance has found none; None if there is none."""
        if self._search_space is None:
            return next(iter(random_candidates(situation, 1)), None)
        screen = Screen(record.archive, self._known_losses, record.signs, taken)
        try:
            every = record.space.every()
            n_seen = 0
            while lot := list(islice(every, 256)):
                n_seen += len(lot)
                fitting = [c for c in lot if all(c.params.get(k) == v for k, v in situation.fixed.items())]
                passed = screen(fitting).candidates
                if passed:
                    return passed[0]
                if n_seen >= _MAX_ENUMERATED:
                    break
            else:
                return None
        except ValueError:
            pass
        untried = [candidate for candidate in random_candidates(situation, 100) if candidate.identity not in taken]
        return next(iter(untried), None)

    def is_dominated(
        self, study: Study, trial: Trial | FrozenTrial, known: Mapping[int, float] | None = None
    ) -> str | None:
        """Say why an architecture need not be trained, or return None if it may be worth it.

        For costs that only the trial itself can measure: call it after measuring and before training.

        Args:
            study: The study.
            trial: Its parameters have all been chosen.
            known: Measured values, by objective index; values of ``known_objectives`` need not be repeated.

        Returns:
            A reason that names the two trials that prove it, or None.
        """
        with self._lock:
            record = self._record(study)
            record.read(study, None)
            candidate = record.space.decode(trial.params, trial.distributions)
            if candidate is None:
                return None
            is_known = self._known_losses.objectives(len(record.signs))
            losses = self._known_losses([candidate], record.signs)
            for objective, value in (known or {}).items():
                losses[0, objective] = record.signs[objective] * value
                is_known[objective] = True
            archive = record.archive
            bounds = archive.bounds([candidate])
            corners = np.where(is_known, losses, bounds.lower)
            row = int(archive.dominators(corners, bounds, is_known)[0])
            if row < 0:
                return None
            larger = sorted({archive.numbers[witness] for witness in bounds.witness[0][~is_known] if witness >= 0})
            limits = f", as trial {' and trial '.join(map(str, larger))} bounds it" if larger else ""
            return f"dominated: trial {archive.numbers[row]} is better even than the best that this can be{limits}"

    def order_violations(self, study: Study) -> list[tuple[int, int]]:
        """Return for each objective how many pairs of trained architectures violate the order, and of how many."""
        with self._lock:
            record = self._record(study)
            record.read(study, None)
            return [(int(count), record.archive.comparisons) for count in record.archive.violations]


def _identities(record: Record, pending: Sequence[Candidate]) -> set[Hashable]:
    """Return the identities of all that has been, is or waits to be trained."""
    return record.tried | {candidate.identity for candidate in pending}


def _new_seed() -> int:
    return int(np.random.SeedSequence().generate_state(1)[0])


def _place(index: int, n_places: int) -> float:
    """Return the quantile of the ``index``-th of ``n_places``: the smallest, the largest, and then always halfway."""
    if index < 2:
        return float(index)
    places = [0.0]
    for position in range(1, n_places - 1):
        fraction, base = 0.0, 0.5
        while position:
            fraction += base * (position % 2)
            position //= 2
            base /= 2
        places.append(fraction)
    return places[index - 1]
