"""An Optuna sampler that uses a partial order over architectures."""

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
from .selection import Situation, evolve, improve, mean_capacity, random_proposals, spread
from .space import Order, Proposal, SearchSpace, Space
from .surrogate import Surrogate, fit

_logger = get_logger(f"optuna.{__name__}")

# Workers that have selected the same proposal at the same time select again, at most so often.
_MAX_ATTEMPTS = 20
# Largest number of architectures that are enumerated to find one that can be tried.
_MAX_ENUMERATED = 100_000
_EXHAUSTED = "every architecture of the search space has been evaluated or is provably dominated"


class PartialOrderPruningSampler(BaseSampler):
    """Sampler for search spaces in which larger architectures are better but cost more.

    Before a trial starts, the sampler generates proposals by running ``search_space``. It drops those that equal the
    architecture of another trial, and those that are provably dominated by the bounds of the partial order, and selects
    one of the others. Without arguments it works on any study.

    The order assumes that the value of an objective does not fall from x to y if x precedes y: accuracy and cost grow
    with capacity. List objectives whose value falls as capacity grows, such as an error rate, in ``decreasing``.

    If a trial was not completed and its user attribute ``outcome`` is ``"too_large"``, ``"too_costly"`` or
    ``"out_of_memory"``, no architecture that is at least as large is proposed, unless such a one has been trained.

    Architectures that contradict the order, such as a large network whose training diverged, give no bounds, and the
    surrogate model gives them little weight. If two contradict each other and it cannot be decided which is wrong, both
    are treated so. Other violations are noise; the bounds are loosened by their root mean square.

    Args:
        search_space: ``trial -> architecture``, the function that the objective itself calls; it may raise
            :class:`optuna.TrialPruned` for an invalid combination. If None, the architecture is the dictionary of
            parameters, and proposals are generated from the distributions that trials have had so far.
        order: ``architecture -> (group, vector)``. x precedes y if their groups are equal and no entry of x's vector is
            larger than y's. If None, no architectures can be compared.
        known_objectives: ``{objective index: architecture -> value}`` for objectives that are known before training.
        selection: ``"ehvi"`` ranks many proposals by expected hypervolume improvement; ``"evolution"`` mutates the
            Pareto front, as in the paper (Li et al., "Partial Order Pruning", CVPR 2019).
        n_startup_trials: Number of trials that are spread over the search space before, at least 1.
        tolerance: How far values may violate the order, at least 0, in the unit of the objective: one number for all
            objectives or one for each. ``math.inf`` disables pruning.
        decreasing: Indices of objectives whose value falls as capacity grows.
        exclusive: Whether the caller ensures that only one worker at a time asks for a trial, from before the trial is
            created until all its parameters are suggested. The sampler then need not check for workers that select the
            same proposal, which saves a reading of the study per trial.
        seed: Seed for random numbers. The same seed and study give the same proposals.

    Raises:
        ValueError: An argument is out of range.
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
        """Use a new random seed."""
        self._seed = _new_seed()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return no parameters: each is sampled by name, so that its distribution may differ between trials."""
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
        """Return the proposed value of a parameter; a random one if none was proposed or the distribution lacks it.

        Raises:
            optuna.TrialPruned: The search space is exhausted, and the study is being stopped.
        """
        params = self._proposed_params(study, trial)
        if params is None:
            raise TrialPruned(_EXHAUSTED)
        value = value_of(params, param_name, param_distribution)
        if value is MISSING:
            return draw(param_distribution, random.Random(f"{self._seed} {trial.number} {param_name}"))
        return value

    def _proposed_params(self, study: Study, trial: FrozenTrial) -> Mapping[str, Any] | None:
        """Return the parameters that were proposed for a trial; None if nothing was left to propose."""
        with self._lock:
            params_of = self._record(study).proposed_params
            if trial.number not in params_of:
                # Kept, since Optuna reads these attributes from the database at each access.
                params_of[trial.number] = trial.system_attrs.get(PROPOSAL, {})
            return params_of[trial.number]

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Forget the parameters that were proposed for the trial."""
        with self._lock:
            self._record(study).proposed_params.pop(trial.number, None)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Select all parameters of a trial, and store them with it, so that other workers see them before training."""
        if PROPOSAL in trial.system_attrs:
            return
        with self._lock:
            record = self._record(study)
            pending = record.read(study, trial)
            if not record.space.is_known or record.decode_pending(trial) is not None:
                return
            for attempt in range(_MAX_ATTEMPTS):
                taken = _identities(record, pending)
                proposal = self._next(record, pending, taken, trial, attempt)
                if proposal is None:
                    self._stop(study, trial)
                    return
                set_system_attr(study, trial, PROPOSAL, proposal.params)
                record.proposed_params[trial.number] = proposal.params
                if self._exclusive:
                    return
                # Each worker writes before it reads, so of two that have selected the same proposal at least one sees
                # the other's, even if that trial has finished meanwhile.
                pending = record.read(study, trial)
                if proposal.identity not in _identities(record, pending) - taken:
                    return

    def _stop(self, study: Study, trial: FrozenTrial) -> None:
        if self._search_space is None or fixed_params(trial):
            return
        try:
            study.stop()
        except RuntimeError:
            # study.ask was called outside of study.optimize, so nothing can be stopped.
            _logger.warning(f"{_EXHAUSTED}; trial {trial.number} is random")
            return
        set_system_attr(study, trial, PROPOSAL, None)
        self._record(study).proposed_params[trial.number] = None
        _logger.info(f"{_EXHAUSTED}: the study stops")

    def _record(self, study: Study) -> Record:
        if study not in self._records:
            signs = np.array([-1.0 if each == StudyDirection.MAXIMIZE else 1.0 for each in study.directions])
            rises = (signs > 0) != np.isin(np.arange(len(signs)), list(self._decreasing))
            if np.ndim(self._tolerance) and len(np.atleast_1d(self._tolerance)) != len(signs):
                raise ValueError(
                    f"tolerance must have one value for each of {len(signs)} objectives: {self._tolerance}"
                )
            tolerance = np.broadcast_to(np.asarray(self._tolerance, dtype=float), signs.shape)
            space = Space(self._search_space, self._order)
            self._records[study] = Record(space, Archive(rises, tolerance), signs)
        return self._records[study]

    def _next(
        self, record: Record, pending: list[Proposal], taken: set[Hashable], trial: FrozenTrial, attempt: int
    ) -> Proposal | None:
        archive = record.archive
        screen = Screen(archive, self._known_losses, record.signs, taken)
        rng = random.Random(f"{self._seed} {trial.number} {attempt}")
        situation = Situation(record.space, archive, pending, screen, fixed_params(trial), rng)
        proposal = self._select(record, situation, attempt)
        return proposal or self._find_untried(record, taken, situation)

    def _select(self, record: Record, situation: Situation, attempt: int) -> Proposal | None:
        archive = situation.archive
        n_started = len(archive.numbers) + len(situation.pending)
        if n_started < self._n_startup_trials:
            return spread(situation, self._size, _quantile(n_started, self._n_startup_trials))
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
        """Return the sizes that startup trials are spread over: a known objective, or else the mean capacity."""
        if self._known_losses.functions:
            return screened.known[:, min(self._known_losses.functions)]
        return mean_capacity(screened.proposals)

    def _find_untried(self, record: Record, taken: Collection[Hashable], situation: Situation) -> Proposal | None:
        """Search all proposals for one that passes the screen, if random ones did not; None if none is left."""
        if self._search_space is None:
            return next(iter(random_proposals(situation, 1)), None)
        screen = Screen(record.archive, self._known_losses, record.signs, taken)
        try:
            every = record.space.every()
            n_seen = 0
            while batch := list(islice(every, 256)):
                n_seen += len(batch)
                fitting = [c for c in batch if all(c.params.get(k) == v for k, v in situation.fixed.items())]
                passed = screen(fitting).proposals
                if passed:
                    return passed[0]
                if n_seen >= _MAX_ENUMERATED:
                    break
            else:
                return None
        except ValueError:
            pass
        untried = [proposal for proposal in random_proposals(situation, 100) if proposal.identity not in taken]
        return next(iter(untried), None)

    def is_dominated(
        self, study: Study, trial: Trial | FrozenTrial, known: Mapping[int, float] | None = None
    ) -> str | None:
        """Return why the architecture of a trial is provably dominated; None if it is not.

        It is for costs that can only be measured in the trial: call it in the objective, after measuring and before
        training, and raise :class:`optuna.TrialPruned` with the reason.

        Args:
            study: The study.
            trial: The trial, after all its parameters have been suggested.
            known: Measured values by objective index; ``known_objectives`` need not be included.

        Returns:
            The reason, which names the trials that prove it; or None.
        """
        with self._lock:
            record = self._record(study)
            record.read(study, None)
            proposal = record.space.decode(trial.params, trial.distributions)
            if proposal is None:
                return None
            is_known = self._known_losses.objectives(len(record.signs))
            losses = self._known_losses([proposal], record.signs)
            for objective, value in (known or {}).items():
                losses[0, objective] = record.signs[objective] * value
                is_known[objective] = True
            archive = record.archive
            bounds = archive.bounds([proposal])
            corners = np.where(is_known, losses, bounds.lower)
            row = int(archive.dominators(corners, bounds, is_known)[0])
            if row < 0:
                return None
            larger = sorted({archive.numbers[witness] for witness in bounds.witness[0][~is_known] if witness >= 0})
            limits = f", as trial {' and trial '.join(map(str, larger))} bounds it" if larger else ""
            return f"dominated: trial {archive.numbers[row]} is better even than the best that this can be{limits}"

    def order_violations(self, study: Study) -> list[tuple[int, int]]:
        """Return, for each objective, the number of pairs that violate the order, and the number of comparable pairs.

        Args:
            study: The study, whose trained architectures are compared.
        """
        with self._lock:
            record = self._record(study)
            record.read(study, None)
            return [(int(count), record.archive.comparisons) for count in record.archive.violations]


def _identities(record: Record, pending: Sequence[Proposal]) -> set[Hashable]:
    """Return the identities of the architectures of all finished, running and waiting trials."""
    return record.tried | {proposal.identity for proposal in pending}


def _new_seed() -> int:
    return int(np.random.SeedSequence().generate_state(1)[0])


def _quantile(index: int, n_trials: int) -> float:
    """Return the quantile of a startup trial's size: 0, 1, and then the van der Corput sequence 1/2, 1/4, 3/4, ..."""
    if index < 2:
        return float(index)
    quantiles = [0.0]
    for position in range(1, n_trials - 1):
        fraction, base = 0.0, 0.5
        while position:
            fraction += base * (position % 2)
            position //= 2
            base /= 2
        quantiles.append(fraction)
    return quantiles[index - 1]
