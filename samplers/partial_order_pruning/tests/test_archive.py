import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ..archive import Archive
from ..space import Candidate, Space
from .problems import Grid, Key

NONE_KNOWN, COST_KNOWN = np.array([False, False]), np.array([False, True])
RISES = np.array([False, True])


def candidate(grid: Grid, key: Key) -> Candidate:
    space = Space(grid.search_space, grid.order)
    params = {"group": key[0], **{f"capacity{axis}": level for axis, level in enumerate(key[1:])}}
    found = space.decode(params, {})
    assert found is not None
    return found


def archive_of(grid: Grid, keys: list[Key], tolerance: float = 0.0) -> Archive:
    archive = Archive(RISES, np.full(2, tolerance))
    for number, key in enumerate(keys):
        accuracy, cost = grid.values(key)
        archive.add(number, candidate(grid, key), [-accuracy, cost], 0.0)
    return archive


problems = st.builds(
    Grid.monotone, st.integers(0, 10**6), st.sampled_from([(2, 3, 3), (1, 4, 3, 2), (2, 5), (3, 2, 2, 2)])
)


@given(problems, st.integers(0, 10**6), st.booleans())
def test_what_is_pruned_is_never_a_pareto_point(grid: Grid, seed: int, knows_cost: bool) -> None:
    order = np.random.default_rng(seed).permutation(len(grid.keys))
    trained = [grid.keys[index] for index in order[: len(order) // 2]]
    others = [grid.keys[index] for index in order[len(order) // 2 :]]
    archive = archive_of(grid, trained)
    candidates = [candidate(grid, key) for key in others]
    bounds = archive.bounds(candidates)
    known = COST_KNOWN if knows_cost else NONE_KNOWN
    losses = np.array([(-accuracy, cost) for accuracy, cost in map(grid.values, others)])
    pruned = archive.dominators(np.where(known, losses, bounds.lower), bounds, known) >= 0
    assert not {key for key, gone in zip(others, pruned, strict=True) if gone} & grid.pareto_keys()


@given(problems, st.integers(0, 10**6))
def test_bounds_hold_and_are_what_the_order_says(grid: Grid, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(grid.keys))
    trained = [grid.keys[index] for index in order[: len(order) // 2]]
    archive = archive_of(grid, trained)
    bounds = archive.bounds([candidate(grid, key) for key in grid.keys])
    for row, key in enumerate(grid.keys):
        accuracy, cost = grid.values(key)
        below = [grid.values(other) for other in trained if other[0] == key[0] and np.all(np.array(other) <= key)]
        above = [grid.values(other) for other in trained if other[0] == key[0] and np.all(np.array(other) >= key)]
        assert bounds.lower[row, 0] == max((-a for a, _ in above), default=-np.inf) <= -accuracy
        assert bounds.upper[row, 0] == min((-a for a, _ in below), default=np.inf) >= -accuracy
        assert bounds.lower[row, 1] == max((c for _, c in below), default=-np.inf) <= cost
        assert bounds.upper[row, 1] == min((c for _, c in above), default=np.inf) >= cost
    assert not archive.violations.any()
    assert not archive.slack.any()


def test_an_equal_cost_does_not_prune() -> None:
    grid = Grid(np.array([[0.1, 0.2, 0.3], [0.0, 0.4, 0.5]]), np.array([[1.0, 2.0, 3.0], [0.5, 2.0, 3.0]]))
    archive = archive_of(grid, [(0, 2), (1, 1)])
    x = candidate(grid, (0, 1))
    bounds = archive.bounds([x])
    equal, dearer = np.array([[bounds.lower[0, 0], 2.0]]), np.array([[bounds.lower[0, 0], 2.1]])
    assert archive.dominators(equal, bounds, COST_KNOWN).tolist() == [-1]
    assert archive.dominators(dearer, bounds, COST_KNOWN).tolist() == [1]


def test_violations_are_counted_and_from_then_on_tolerated() -> None:
    grid = Grid(np.array([[0.2, 0.1, 0.5]]), np.array([[1.0, 2.0, 3.0]]))
    archive = archive_of(grid, grid.keys)
    assert archive.comparisons == 3
    assert archive.violations.tolist() == [1, 0]
    np.testing.assert_allclose(archive.slack, [0.1, 0.0])
    assert archive_of(grid, grid.keys, tolerance=0.15).violations.tolist() == [0, 0]


def test_nothing_as_large_as_what_ran_out_of_memory_fits() -> None:
    grid = Grid.additive(0, (2, 3, 3))
    archive = Archive(RISES, np.zeros(2))
    archive.add_too_large(candidate(grid, (0, 1, 1)))
    too_large = {key for key in grid.keys if archive.is_too_large(candidate(grid, key))}
    assert too_large == {(0, 1, 1), (0, 1, 2), (0, 2, 1), (0, 2, 2)}


def test_what_has_been_trained_shows_that_what_is_no_larger_fits() -> None:
    grid = Grid.additive(0, (2, 3, 3))
    small, large = candidate(grid, (0, 1, 1)), candidate(grid, (0, 2, 2))
    archive = Archive(RISES, np.zeros(2))
    archive.add_too_large(small)
    assert archive.is_too_large(large)
    archive.add(0, candidate(grid, (0, 1, 2)), [0.0, 0.0], 0.0)
    assert not archive.is_too_large(small)
    assert not archive.is_too_large(large)
    # Whichever of the two is seen first.
    archive.add_too_large(small)
    assert not archive.is_too_large(small)
    archive.add_too_large(large)
    assert archive.is_too_large(large)


@given(problems)
def test_the_front_is_what_no_other_dominates(grid: Grid) -> None:
    archive = archive_of(grid, grid.keys)
    front = {grid.values(grid.keys[row]) for row in archive.front}
    assert front == {grid.values(key) for key in grid.pareto_keys()}


@given(problems, st.integers(1, 8))
def test_a_former_front_is_that_of_the_rows_there_were(grid: Grid, n_rows: int) -> None:
    now, then = archive_of(grid, grid.keys), archive_of(grid, grid.keys[:n_rows])
    np.testing.assert_array_equal(now.front_of_first(n_rows), then.front)
