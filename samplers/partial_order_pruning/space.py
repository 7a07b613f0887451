"""What can be proposed: candidates, complete with all their conditional parameters, and ways to make them."""

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
class Candidate:
    """A complete choice of parameters and the architecture that they mean.

    Args:
        params: Every parameter, conditional ones included.
        distributions: What each was chosen from.
        architecture: What the search space returned; the parameters where there is no search space.
        identity: Equal for equal architectures only.
        group: Candidates of one group can be compared; None when nothing can.
        vector: Capacities, of one length within a group; empty when nothing can be compared.
    """

    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    architecture: Any
    identity: Hashable
    group: Hashable
    vector: tuple[float, ...]


class Space:
    """Makes candidates, from a search space where there is one, otherwise from what trials have asked for so far.

    Args:
        search_space: ``trial -> architecture``.
        order: ``architecture -> (group, vector)``.
    """

    def __init__(self, search_space: SearchSpace | None, order: Order | None) -> None:
        self._search_space = search_space
        self._order = order
        self._shapes: dict[tuple[str, ...], dict[str, BaseDistribution]] = {}
        self._latest: dict[str, BaseDistribution] = {}

    @property
    def is_known(self) -> bool:
        """Whether there is anything to make candidates from."""
        return self._search_space is not None or bool(self._shapes)

    def learn(self, distributions: dict[str, BaseDistribution]) -> None:
        """Note what a trial asked for; this is the search space where none was given."""
        if self._search_space is None and distributions:
            self._shapes[tuple(sorted(distributions))] = distributions
            self._latest.update(distributions)

    def replay(self, choose: Choose, shape: Iterable[str]) -> Candidate | None:
        """Return the candidate that ``choose`` makes; None when the search space refuses the combination.

        Args:
            choose: The value for each parameter.
            shape: The parameters of a parent; used where there is no search space.
        """
        trial = ReplayTrial(choose)
        if self._search_space is None:
            for name in shape:
                trial._suggest(name, self._latest[name])
            return self._candidate(trial, trial.params)
        try:
            architecture = self._search_space(trial)
        except TrialPruned:
            return None
        return self._candidate(trial, architecture)

    def _candidate(self, trial: ReplayTrial, architecture: Any) -> Candidate:
        group, vector = (None, ()) if self._order is None else self._order(architecture)
        return Candidate(
            trial.params,
            trial.distributions,
            architecture,
            _identity(architecture),
            _identity(group),
            tuple(float(capacity) for capacity in vector),
        )

    def decode(self, params: Mapping[str, Any], distributions: dict[str, BaseDistribution]) -> Candidate | None:
        """Return the candidate of a trial's parameters; None when they are not of this space."""
        if self._search_space is None:
            trial = ReplayTrial(lambda name, _: params[name])
            for name, distribution in distributions.items():
                trial._suggest(name, distribution)
            return self._candidate(trial, trial.params)

        def choose(name: str, distribution: BaseDistribution) -> Any:
            value = value_of(params, name, distribution)
            if value is MISSING:
                raise _NotOfThisSpace
            return value

        try:
            candidate = self.replay(choose, ())
        except _NotOfThisSpace:
            return None
        # A superset of parameters is another objective than the search space describes.
        return candidate if candidate is not None and set(params) == set(candidate.params) else None

    def distributions(
        self, params: Mapping[str, Any], asked: Mapping[str, BaseDistribution]
    ) -> dict[str, BaseDistribution] | None:
        """Return what an unfinished trial's parameters are chosen from; None where that is not known.

        Args:
            params: All that it has or will have.
            asked: Distributions that it has asked for already.
        """
        known = {**self._latest, **asked}
        if self._search_space is None and not params.keys() <= known.keys():
            return None
        return {name: known[name] for name in params if name in known}

    def random_candidate(self, rng: random.Random, fixed: Mapping[str, Any]) -> Candidate | None:
        """Return a random candidate with the ``fixed`` values."""
        shape = rng.choice(sorted(self._shapes)) if self._shapes else ()

        def choose(name: str, distribution: BaseDistribution) -> Any:
            if (value := value_of(fixed, name, distribution)) is not MISSING:
                return value
            return draw(distribution, rng)

        return self.replay(choose, shape)

    def offspring(self, parents: Sequence[Candidate], rng: random.Random, fixed: Mapping[str, Any]) -> Candidate | None:
        """Return a mutant of one parent, or of a cross between two.

        Each value comes from one of the parents; one of them, two with probability 1/2, three with 1/4 and so on,
        is then changed. Parameters that no parent has are random.

        Args:
            parents: One or two.
            rng: Where chance comes from.
            fixed: Values that stay.
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
            # Replayed from one search space, parents have the very same distribution, and nothing need be checked.
            if parent.distributions.get(name) is not distribution and not (
                name in parent.params and contains(distribution, value)
            ):
                return draw(distribution, rng)
            return change(distribution, value, rng) if name in changed else value

        return self.replay(choose, parents[0].params)

    def every(self) -> Iterator[Candidate]:
        """Return every candidate of a finite search space, in a fixed order.

        Raises:
            ValueError: A parameter is continuous.
        """
        found: list[Candidate | None] = [None]

        def replay(choose: Choose) -> None:
            found[0] = self.replay(choose, ())

        for _ in every_replay(replay):
            if found[0] is not None:
                yield found[0]


class _NotOfThisSpace(Exception):
    """A trial lacks a parameter of the search space, or has a value that it does not offer."""


def _identity(architecture: Any) -> Hashable:
    if isinstance(architecture, dict):
        return tuple(sorted((name, repr(value)) for name, value in architecture.items()))
    try:
        hash(architecture)
    except TypeError:
        return repr(architecture)
    return architecture  # type: ignore[no-any-return]
