import random
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from ..replay import ReplayTrial, change, contains, draw
from ..space import Space

DISTRIBUTIONS: list[BaseDistribution] = [
    FloatDistribution(-1.0, 2.0),
    FloatDistribution(1e-6, 1.0, log=True),
    FloatDistribution(-10.2, 10.2, step=0.1),
    IntDistribution(-3, 9, step=3),
    IntDistribution(1, 100, log=True),
    CategoricalDistribution([None, True, 1.5, "a"]),
]


@given(st.sampled_from(DISTRIBUTIONS), st.integers())
def test_drawn_and_changed_values_are_in_the_distribution(distribution: BaseDistribution, seed: int) -> None:
    rng = random.Random(seed)
    value = draw(distribution, rng)
    assert contains(distribution, value)
    assert contains(distribution, change(distribution, value, rng))


def conditional(trial: Any) -> tuple[Any, ...]:
    neck = trial.suggest_categorical("neck", ["none", "FPN"])
    if neck == "none":
        return (neck,)
    first = trial.suggest_int("first", 1, 3)
    if first == 2:
        raise optuna.TrialPruned
    return neck, first, trial.suggest_int(f"last_from_{first}", first, 4)


def test_every_architecture_of_a_conditional_space_is_enumerated_once() -> None:
    found = [proposal.architecture for proposal in Space(conditional, None).every()]
    assert found == [("none",), *(("FPN", 1, last) for last in (1, 2, 3, 4)), *(("FPN", 3, last) for last in (3, 4))]


def test_offspring_have_all_conditional_parameters() -> None:
    space, rng = Space(conditional, None), random.Random(0)
    parent = space.decode({"neck": "none"}, {})
    assert parent is not None
    children = [space.offspring([parent], rng, {}) for _ in range(100)]
    architectures = {child.architecture for child in children if child is not None}
    assert architectures == {proposal.architecture for proposal in space.every()} - {("none",)}


def test_fixed_values_are_kept() -> None:
    space, rng = Space(conditional, None), random.Random(0)
    for _ in range(50):
        proposal = space.random_proposal(rng, {"first": 3})
        assert proposal is not None
        assert proposal.params.get("first", 3) == 3


@pytest.mark.parametrize(
    "params", [{"neck": "FPN", "first": 1}, {"neck": "PAN"}, {"neck": "none", "first": 1}, {"neck": "FPN", "first": 9}]
)
def test_parameters_of_another_space_are_no_proposal(params: dict[str, Any]) -> None:
    assert Space(conditional, None).decode(params, {}) is None


def test_a_parameter_suggested_twice_is_chosen_once() -> None:
    rng = random.Random(0)
    trial = ReplayTrial(lambda _, distribution: draw(distribution, rng))
    assert trial.suggest_float("x", 0, 1) == trial.suggest_float("x", 0, 1)
