import pytest

from smnas_optuna.reporting.sparkline import sparkline


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([], ""),
        ([3.0], "▁"),
        ([0.0, 7.0], "▁█"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([2.0, 2.0, 2.0], "▁▁▁"),
    ],
)
def test_each_value_has_a_bar_from_the_smallest_to_the_largest(values: list[float], bars: str) -> None:
    assert sparkline(values) == bars


def test_more_values_than_bars_are_averaged() -> None:
    assert sparkline([0, 0, 7, 7, 14, 14], width=3) == sparkline([0, 7, 14])
    assert len(sparkline(range(1000), width=10)) == 10
