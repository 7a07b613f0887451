"""The margin of the gate before training, on times as real searches have them and on any others."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from smnas_optuna.search.timing_margin import UNDERCUT_PROBABILITY, optimistic_latency, timing_pairs

# Untrained by trained time, as real searches had it.
LEAST, MOST = 0.85, 1.6

times = st.floats(min_value=1e-3, max_value=1e6)
pairs_of_times = st.lists(st.tuples(times, times), max_size=120)
seen_pairs = st.lists(
    st.tuples(st.floats(1.0, 1000.0), st.floats(LEAST, MOST)).map(lambda pair: (pair[0], pair[0] / pair[1])),
    max_size=18,
)


@given(pairs_of_times.filter(bool))
def test_of_any_times_hardly_one_in_twenty_is_below_what_the_others_lead_to_expect(
    pairs: list[tuple[float, float]],
) -> None:
    def undercuts(index: int) -> bool:
        untrained, trained = pairs[index]
        # A ratio that was seen itself is not undercut; its product may round either way.
        return trained < optimistic_latency(untrained, pairs[:index] + pairs[index + 1 :]) * (1 - 1e-12)

    if len(pairs) >= 1 / UNDERCUT_PROBABILITY:
        assert sum(map(undercuts, range(len(pairs)))) <= UNDERCUT_PROBABILITY * len(pairs)


@given(seen_pairs, st.floats(1.0, 1000.0), st.floats(LEAST, MOST))
def test_with_few_pairs_no_time_as_real_searches_have_it_is_below(
    pairs: list[tuple[float, float]], untrained: float, ratio: float
) -> None:
    assert optimistic_latency(untrained, pairs) < untrained / ratio


@pytest.mark.parametrize("count", [19, 20, 38, 39, 100])
def test_with_many_pairs_a_time_as_real_searches_have_it_is_below_with_the_stated_probability(count: int) -> None:
    numbers = random.Random(count)

    def pair() -> tuple[float, float]:
        untrained = numbers.uniform(5, 50)
        return untrained, untrained / math.exp(numbers.uniform(math.log(LEAST), math.log(MOST)))

    searches = 4000
    below = 0
    for _ in range(searches):
        pairs = [pair() for _ in range(count)]
        untrained, trained = pair()
        below += trained < optimistic_latency(untrained, pairs)
    # Three standard deviations of chance.
    chance = 3 * math.sqrt(UNDERCUT_PROBABILITY * (1 - UNDERCUT_PROBABILITY) / searches)
    assert below / searches <= UNDERCUT_PROBABILITY + chance


@given(times, pairs_of_times)
def test_it_is_positive_and_no_more_than_the_untrained_time(untrained: float, pairs: list[tuple[float, float]]) -> None:
    assert 0 < optimistic_latency(untrained, pairs) <= untrained


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], 5.0),
        ([(10.0, 9.0)], 5.0),
        ([(10.0, 4.0)], 4.0),
        ([(10.0, 9.0)] * 18, 5.0),
        ([(20.0, 16.0), *[(10.0, 9.0)] * 18], 8.0),
        ([(20.0, 16.0), *[(10.0, 9.0)] * 37], 8.0),
        ([(20.0, 16.0), *[(10.0, 9.0)] * 38], 9.0),
        ([(10.0, 13.0)] * 19, 10.0),
    ],
)
def test_the_margin_is_learned_from_nineteen_pairs_on(pairs: list[tuple[float, float]], expected: float) -> None:
    assert optimistic_latency(10.0, pairs) == pytest.approx(expected)


def test_pairs_are_of_completed_trials_on_the_device_that_were_timed_before_and_after_training() -> None:
    times = {"untrained_latency_ms": 10.0, "latency_ms": 9.0, "device": "A"}
    trials = [
        create_trial(value=1.0, user_attrs=times),
        create_trial(value=1.0, user_attrs={**times, "device": "B"}),
        create_trial(value=1.0, user_attrs={**times, "resumed_after_epochs": 2}),
        create_trial(value=1.0, user_attrs={"latency_ms": 9.0, "device": "A"}),
        create_trial(value=1.0),
        create_trial(state=TrialState.FAIL, user_attrs=times),
        create_trial(state=TrialState.PRUNED, user_attrs=times),
    ]
    assert timing_pairs(trials, "A") == [(10.0, 9.0)]
