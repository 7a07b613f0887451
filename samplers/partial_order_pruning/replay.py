"""A trial without a study, which runs a define-by-run search space with values that a callable chooses."""

from __future__ import annotations

import datetime
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

Choose = Callable[[str, BaseDistribution], Any]

# Distributions are cached, since building and checking one takes longer than choosing a value.
_float = lru_cache(maxsize=4096)(FloatDistribution)
_int = lru_cache(maxsize=4096)(IntDistribution)
# typed, since the choices 1, 1.0 and True are equal keys but different values.
_hashable_categorical = lru_cache(maxsize=4096, typed=True)(lambda *choices: CategoricalDistribution(choices))


def _categorical(choices: Sequence[Any]) -> CategoricalDistribution:
    try:
        return _hashable_categorical(*choices)
    except TypeError:
        # Lists and dictionaries cannot be hashed; Optuna accepts them with a warning.
        return CategoricalDistribution(choices)


class ReplayTrial(BaseTrial):
    """A trial whose ``suggest_*`` methods return and record what ``choose(name, distribution)`` returns.

    It belongs to no study and writes to no storage, so a search space can be run hundreds of times per trial.

    Args:
        choose: Returns the value of a parameter; called once for each parameter that has more than one value.
    """

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self._params: dict[str, Any] = {}
        self._distributions: dict[str, BaseDistribution] = {}
        self._user_attrs: dict[str, Any] = {}
        self._constraints: dict[str, float] = {}

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name not in self._params:
            single = distribution.single()
            self._params[name] = only_value(distribution) if single else self._choose(name, distribution)
            self._distributions[name] = distribution
        return self._params[name]

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Return the chosen number."""
        return float(self._suggest(name, _float(low, high, log, step)))

    def suggest_uniform(self, name: str, low: float, high: float) -> float:
        """Return the chosen number."""
        return self.suggest_float(name, low, high)

    def suggest_loguniform(self, name: str, low: float, high: float) -> float:
        """Return the chosen number."""
        return self.suggest_float(name, low, high, log=True)

    def suggest_discrete_uniform(self, name: str, low: float, high: float, q: float) -> float:
        """Return the chosen number."""
        return self.suggest_float(name, low, high, step=q)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Return the chosen integer."""
        return int(self._suggest(name, _int(low, high, log, step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return the chosen choice."""
        return self._suggest(name, _categorical(choices))

    def report(self, value: float, step: int) -> None:
        """Do nothing, since the trial belongs to no study."""

    def should_prune(self) -> bool:
        """Return False, since nothing is trained."""
        return False

    def set_user_attr(self, key: str, value: Any) -> None:
        """Keep the attribute on this trial only."""
        self._user_attrs[key] = value

    def set_constraint(self, key: str, value: float) -> None:
        """Keep the constraint on this trial only."""
        self._constraints[key] = value

    @property
    def params(self) -> dict[str, Any]:
        """The chosen values by parameter name."""
        return self._params

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The distributions of the parameters by name."""
        return self._distributions

    @property
    def user_attrs(self) -> dict[str, Any]:
        """The user attributes that the search space has set."""
        return self._user_attrs

    @property
    def constraints(self) -> dict[str, float]:
        """The constraints that the search space has set."""
        return self._constraints

    @property
    def datetime_start(self) -> datetime.datetime | None:
        """None, since the trial never starts."""
        return None

    @property
    def number(self) -> int:
        """-1, since the trial belongs to no study."""
        return -1


def only_value(distribution: BaseDistribution) -> Any:
    """Return the value of a distribution that has a single one."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution.low


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Return whether a distribution has a value; categorical choices are compared as Optuna compares them."""
    if isinstance(distribution, CategoricalDistribution):
        try:
            distribution.to_internal_repr(value)
        except ValueError:
            return False
        return True
    if type(value) is not float and type(value) is not int:
        return False
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if not distribution.low <= value <= distribution.high:
        return False
    if distribution.step is None:
        return True
    steps = (value - distribution.low) / distribution.step
    return abs(steps - round(steps)) < 1e-8


# What :func:`value_of` returns if there is no value, since None may be a choice.
MISSING = object()


def value_of(params: Mapping[str, Any], name: str, distribution: BaseDistribution) -> Any:
    """Return the value of a parameter if its distribution has it, else ``MISSING``.

    In parameters from the database tuples have become lists; the distribution's own choice is returned for them.
    """
    if name not in params:
        return MISSING
    value = params[name]
    if isinstance(distribution, CategoricalDistribution) and isinstance(value, list):
        value = next((choice for choice in distribution.choices if _without_tuples(choice) == value), value)
    return value if contains(distribution, value) else MISSING


def _without_tuples(value: Any) -> Any:
    return [_without_tuples(part) for part in value] if isinstance(value, list | tuple) else value


def levels(distribution: BaseDistribution) -> int | None:
    """Return the number of values of a distribution; None for a continuous one."""
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.step is None:
        return None
    return math.floor((distribution.high - distribution.low) / distribution.step + 1e-8) + 1


def value_at(distribution: BaseDistribution, level: int) -> Any:
    """Return the value of a distribution with an index, counted from 0."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[level]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    assert distribution.step is not None
    return min(distribution.low + level * distribution.step, distribution.high)


def position(distribution: BaseDistribution, value: float) -> float:
    """Return the position of a value between low (0) and high (1), on a log scale if the distribution has one."""
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    if distribution.log:
        return math.log(value / low) / math.log(high / low) if high > low else 0.0
    return (value - low) / (high - low) if high > low else 0.0


def value_near(distribution: BaseDistribution, target: float) -> Any:
    """Return the value nearest to a position between low (0) and high (1); the inverse of :func:`position`."""
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    value = low * (high / low) ** target if distribution.log else low + target * (high - low)
    if distribution.step is not None:
        value = low + round((value - low) / distribution.step) * distribution.step
    value = min(max(value, low), high)
    return round(value) if isinstance(distribution, IntDistribution) else float(value)


def draw(distribution: BaseDistribution, rng: random.Random) -> Any:
    """Return a uniformly random value of a distribution."""
    n_levels = levels(distribution)
    if n_levels is None or (isinstance(distribution, IntDistribution) and distribution.log):
        return value_near(distribution, rng.random())
    return value_at(distribution, rng.randrange(n_levels))


def change(distribution: BaseDistribution, value: Any, rng: random.Random) -> Any:
    """Return a random other value: for numbers, with probability 1/2, a neighbouring one."""
    n_levels = levels(distribution)
    if n_levels is None or (isinstance(distribution, IntDistribution) and distribution.log):
        if rng.random() < 0.5:
            return draw(distribution, rng)
        target = position(distribution, value) + rng.gauss(0.0, 0.1)
        return value_near(distribution, min(max(target, 0.0), 1.0))
    if isinstance(distribution, CategoricalDistribution):
        level = int(distribution.to_internal_repr(value))
    else:
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        assert distribution.step is not None
        level = round((value - distribution.low) / distribution.step)
        neighbours = [near for near in (level - 1, level + 1) if 0 <= near < n_levels]
        if neighbours and rng.random() < 0.5:
            return value_at(distribution, rng.choice(neighbours))
    other = rng.randrange(n_levels - 1)
    return value_at(distribution, other + (other >= level))


def every_replay(replay: Callable[[Choose], None]) -> Iterator[None]:
    """Call ``replay`` once for each combination of values in a finite search space, in a fixed order.

    Args:
        replay: Runs the search space with the ``choose`` that is passed to it.

    Raises:
        ValueError: A distribution is continuous, so the combinations cannot be enumerated.
    """
    path: list[tuple[int, int]] = []
    depth = 0

    def choose(name: str, distribution: BaseDistribution) -> Any:
        nonlocal depth
        if depth == len(path):
            n_levels = levels(distribution)
            if n_levels is None:
                raise ValueError(f"{name} is continuous: {distribution}")
            path.append((0, n_levels))
        level, _ = path[depth]
        depth += 1
        return value_at(distribution, level)

    while True:
        depth = 0
        replay(choose)
        yield
        while path and path[-1][0] + 1 >= path[-1][1]:
            path.pop()
        if not path:
            return
        level, n_levels = path.pop()
        path.append((level + 1, n_levels))
