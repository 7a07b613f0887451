import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ..dominance import dominates, non_dominated, weakly_dominates

points_of_three = st.lists(st.tuples(*[st.integers(0, 5)] * 3), max_size=30)


def is_dominated(point: tuple[int, ...], points: list[tuple[int, int, int]]) -> bool:
    return any(other != point and all(o <= p for o, p in zip(other, point, strict=True)) for other in points)


@given(points_of_three)
def test_non_dominated_points_agree_with_the_definition(points: list[tuple[int, int, int]]) -> None:
    losses = np.array(points, dtype=float).reshape(-1, 3)
    assert list(non_dominated(losses)) == [not is_dominated(point, points) for point in points]


def test_equal_losses_dominate_each_other_only_weakly() -> None:
    one, others = np.array([1.0, 2.0]), np.array([[1.0, 2.0], [1.0, 3.0], [0.0, 2.0], [0.0, 3.0]])
    assert weakly_dominates(one, others).tolist() == [True, True, False, False]
    assert dominates(one, others).tolist() == [False, True, False, False]
    assert dominates(others, one).tolist() == [False, False, True, False]
