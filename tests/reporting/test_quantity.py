import math

import pytest

from smnas_optuna.reporting.quantity import MISSING, quantity_of


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("map", 0.4, "0.400"),
        ("map", 42.7, "42.7"),
        ("map_small", -1.0, MISSING),
        ("map", None, MISSING),
        ("latency_ms", 24.46, "24.5 ms"),
        ("latency_ms", 1081.4, "1081 ms"),
        ("latency_ms", math.nan, MISSING),
        ("flops", 52_340_000, "0.0523 G"),
        ("params", 25_600_000, "25.6 M"),
        ("energy", -0.5, "-0.500"),
        ("energy", 0.0, "0"),
    ],
)
def test_a_number_is_shown_with_three_digits_in_its_unit(metric: str, value: float | None, text: str) -> None:
    assert quantity_of(metric).text_with_unit(value) == text


def test_the_spread_has_the_decimals_of_its_value() -> None:
    time = quantity_of("latency_ms")
    assert time.text_with_spread(24.46, 0.318) == "24.5 ± 0.3"
    assert time.text_with_spread(24.46, None) == "24.5"
    assert time.text_with_spread(24.46, math.nan) == "24.5"
    assert time.text_with_spread(None, 0.3) == MISSING
