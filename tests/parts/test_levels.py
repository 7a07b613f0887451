"""Feature levels."""

from smnas_optuna.parts.levels import stride_of


def test_strides_double_from_level_to_level() -> None:
    assert [stride_of(level) for level in range(1, 7)] == [4, 8, 16, 32, 64, 128]
