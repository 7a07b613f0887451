"""Generates proposals: architectures with all their parameters, conditional ones included."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna import TrialPruned
from optuna.distributions import BaseDistribution

from .replay import MISSING, Choose, ReplayTrial, change, contains, draw, every_replay, value_of

SearchSpace = Callable[[Any], Any]
Order = Callable[[Any], tuple[Hashable, Sequence[float]]]


@dataclass(frozen=True, eq=False)
class Proposal:
    """An architecture that could be tried next, or has been tried, and its parameters.

    Args:
        params: All parameters, conditional ones included.
        distributions: The distribution of each parameter.
        architecture: What the search space returned; the parameters if there is no search space.
        identity: Equal if and only if the architectures are equal.
        group: Only architectures of one group can be compared; None without an order.
        vector: Capacities, of equal length within a group; empty without an order.
    """

    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    architecture: Any
    identity: Hashable
    group: Hashable
    vector: tuple[float, ...]


class Space:
    """Generates proposals.

    Args:
        search_space: ``trial -> architecture``; None to use the distributions that trials have had so far.
        order: ``architecture -> (group, vector)``; None if no architectures can be compared.
    """

    def __init__(self, search_space: SearchSpace | None, order: Order | None) -> None:
        self._search_space = search_space
        self._order = order
        self._shapes: dict[tuple[str, ...], dict[str, BaseDistribution]] = {}
        self._latest: dict[str, BaseDistribution] = {}

    @property
    def is_known(self) -> bool:
        """Whether proposals can be generated: there is a search space, or a trial has had parameters."""
        return self._search_space is not None or bool(self._shapes)

    def learn(self, distributions: dict[str, BaseDistribution]) -> None:
        """Remember the distributions of a trial; they are used if there is no search space."""
        if self._search_space is None and distributions:
            self._shapes[tuple(sorted(distributions))] = distributions
            self._latest.update(distributions)

    def replay(self, choose: Choose, shape: Iterable[str]) -> Proposal | None:
        """Return the proposal with chosen values; None if the search space raises TrialPruned for them.

        Args:
            choose: Returns the value of each parameter.
            shape: Names of the parameters; used if there is no search space.
        """
        trial = ReplayTrial(choose)
        if self._search_space is None:
            for name in shape:
                trial._suggest(name, self._latest[name])
            return self._proposal(trial, trial.params)
        try:
            architecture = self._search_space(trial)
        except TrialPruned:
            return None
        return self._proposal(trial, architecture)

    def _proposal(self, trial: ReplayTrial, architecture: Any) -> Proposal:
        group, vector = (None, ()) if self._order is None else self._order(architecture)
        return Proposal(
            trial.params,
            trial.distributions,
            architecture,
            _identity(architecture),
            _identity(group),
            tuple(float(capacity) for capacity in vector),
        )

    def decode(self, params: Mapping[str, Any], distributions: dict[str, BaseDistribution]) -> Proposal | None:
        """Return the proposal with the parameters of a trial; None if they are not in this space."""
        if self._search_space is None:
            trial = ReplayTrial(lambda name, _: params[name])
            for name, distribution in distributions.items():
                trial._suggest(name, distribution)
            return self._proposal(trial, trial.params)

        def choose(name: str, distribution: BaseDistribution) -> Any:
            value = value_of(params, name, distribution)
            if value is MISSING:
                raise _NotOfThisSpace
            return value

        try:
            proposal = self.replay(choose, ())
        except _NotOfThisSpace:
            return None
        # With further parameters, the trial has an objective that the search space does not describe.
        return proposal if proposal is not None and set(params) == set(proposal.params) else None

    def distributions(
        self, params: Mapping[str, Any], asked: Mapping[str, BaseDistribution]
    ) -> dict[str, BaseDistribution] | None:
        """Return the distributions of an unfinished trial's parameters; None if they are not known.

        Args:
            params: All parameters that the trial has or will have.
            asked: Distributions of the parameters that have been suggested already.
        """
        known = {**self._latest, **asked}
        if self._search_space is None and not params.keys() <= known.keys():
            return None
        return {name: known[name] for name in params if name in known}

    def random_proposal(self, rng: random.Random, fixed: Mapping[str, Any]) -> Proposal | None:
        """Return a random proposal with fixed values; None if the combination is invalid."""
        shape = rng.choice(sorted(self._shapes)) if self._shapes else ()

        def choose(name: str, distribution: BaseDistribution) -> Any:
            if (value := value_of(fixed, name, distribution)) is not MISSING:
                return value
            return draw(distribution, rng)

        return self.replay(choose, shape)

    def offspring(self, parents: Sequence[Proposal], rng: random.Random, fixed: Mapping[str, Any]) -> Proposal | None:
        """Return a mutant of one parent, or of a cross between two; None if the combination is invalid.

        Each value is that of a random parent. One value, with probability 1/2 a second one, with 1/4 a third one and so
        on, is then changed. Parameters that no parent has are random.

        Args:
            parents: One or two parents.
            rng: Random number generator.
            fixed: Values that are not changed.
        """
        names = [name for name in parents[0].params if name not in fixed]
        n_changes = 1
        while n_changes < len(names) and rng.random() < 0.5:
            n_changes += 1
        changed = set(rng.sample(names, min(n_changes, len(names))))

        def choose(name: str, distribution: BaseDistribution) -> Any:
            if (value := value_of(fixed, name, distribution)) is not MISSING:
                return value
            parent = parents[0] if len(parents) == 1 else rng.choice(parents)
            if name not in parent.params:
                parent = parents[0]
            value = parent.params.get(name)
            # If the distribution is the same object, the parent's value is valid and need not be checked.
            if parent.distributions.get(name) is not distribution and not (
                name in parent.params and contains(distribution, value)
            ):
                return draw(distribution, rng)
            return change(distribution, value, rng) if name in changed else value

        return self.replay(choose, parents[0].params)

    def every(self) -> Iterator[Proposal]:
        """Yield every valid proposal of a finite search space, in a fixed order.

        Raises:
            ValueError: A parameter is continuous; raised when it is reached.
        """
        latest: list[Proposal | None] = [None]

        def replay(choose: Choose) -> None:
            latest[0] = self.replay(choose, ())

        for _ in every_replay(replay):
            if latest[0] is not None:
                yield latest[0]


class _NotOfThisSpace(Exception):
    """A trial lacks a parameter of the search space, or has a value that is not in its distribution."""


def _identity(architecture: Any) -> Hashable:
    if isinstance(architecture, dict):
        return tuple(sorted((name, repr(value)) for name, value in architecture.items()))
    try:
        hash(architecture)
    except TypeError:
        return repr(architecture)
    return architecture  # type: ignore[no-any-return]
