import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ..contradiction import Violations, culprits

graphs = st.integers(2, 12).flatmap(
    lambda n: st.tuples(st.just(n), st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=30))
)


def found(pairs: list[tuple[int, int]], n_rows: int) -> list[int]:
    return np.flatnonzero(culprits(np.array(pairs, dtype=np.int64).reshape(-1, 2), n_rows)).tolist()


@given(graphs)
def test_culprits_cover_all_pairs_and_are_part_of_one(graph: tuple[int, set[tuple[int, int]]]) -> None:
    n_rows, edges = graph
    pairs = sorted({(min(pair), max(pair)) for pair in edges if pair[0] != pair[1]})
    blamed = set(found(pairs, n_rows))
    assert all(blamed & set(pair) for pair in pairs)
    assert blamed <= {row for pair in pairs for row in pair}


def test_one_row_is_blamed_alone_if_it_contradicts_three_others() -> None:
    assert found([(0, 1)], 3) == [0, 1]
    assert found([(0, 1), (0, 2)], 3) == [0, 1, 2]
    assert found([(0, 1), (0, 2), (0, 3)], 4) == [0]


def test_several_culprits_are_found_among_many_rows_that_they_contradict() -> None:
    assert found([(wrong, right) for wrong in (0, 1, 2) for right in range(3, 12)], 12) == [0, 1, 2]


def test_small_violations_of_most_rows_are_noise_and_large_ones_of_one_row_are_not() -> None:
    noise = [(row, row + 1) for row in range(0, 20, 2)]
    gross = [(20, row) for row in range(20)]
    violations = Violations(np.array(noise + gross), np.array([[0.01]] * len(noise) + [[0.5]] * len(gross)))
    levels = violations.noise_levels(21)
    assert levels.tolist() == [0.01]
    judged = violations.contradictions(21, levels)
    assert np.flatnonzero(judged.rows[:, 0]).tolist() == [20]
    np.testing.assert_allclose(judged.noise, [0.01])
    assert judged.n_noisy.tolist() == [10]
