import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ..archive import Archive
from ..space import Proposal, Space
from .problems import Grid, Key

NONE_KNOWN, COST_KNOWN = np.array([False, False]), np.array([False, True])
RISES = np.array([False, True])


def proposal(grid: Grid, key: Key) -> Proposal:
    space = Space(grid.search_space, grid.order)
    params = {"group": key[0], **{f"capacity{axis}": level for axis, level in enumerate(key[1:])}}
    found = space.decode(params, {})
    assert found is not None
    return found


def archive_of(grid: Grid, keys: list[Key], tolerance: float = 0.0) -> Archive:
    archive = Archive(RISES, np.full(2, tolerance))
    for number, key in enumerate(keys):
        accuracy, cost = grid.values(key)
        archive.add(number, proposal(grid, key), [-accuracy, cost], 0.0)
    return archive


problems = st.builds(
    Grid.monotone, st.integers(0, 10**6), st.sampled_from([(2, 3, 3), (1, 4, 3, 2), (2, 5), (3, 2, 2, 2)])
)


@given(problems, st.integers(0, 10**6), st.booleans())
def test_no_pareto_point_is_pruned(grid: Grid, seed: int, knows_cost: bool) -> None:
    order = np.random.default_rng(seed).permutation(len(grid.keys))
    trained = [grid.keys[index] for index in order[: len(order) // 2]]
    others = [grid.keys[index] for index in order[len(order) // 2 :]]
    archive = archive_of(grid, trained)
    proposals = [proposal(grid, key) for key in others]
    bounds = archive.bounds(proposals)
    known = COST_KNOWN if knows_cost else NONE_KNOWN
    losses = np.array([(-accuracy, cost) for accuracy, cost in map(grid.values, others)])
    pruned = archive.dominators(np.where(known, losses, bounds.lower), bounds, known) >= 0
    assert not {key for key, gone in zip(others, pruned, strict=True) if gone} & grid.pareto_keys()


@given(problems, st.integers(0, 10**6))
def test_bounds_hold_and_are_those_of_the_order(grid: Grid, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(grid.keys))
    trained = [grid.keys[index] for index in order[: len(order) // 2]]
    archive = archive_of(grid, trained)
    bounds = archive.bounds([proposal(grid, key) for key in grid.keys])
    accuracies, costs = zip(*map(grid.values, trained), strict=True)
    # A worst value that several rows share gives no bounds.
    floor = {min(accuracies)} if accuracies.count(min(accuracies)) > 1 else set()
    ceiling = {max(costs)} if costs.count(max(costs)) > 1 else set()
    for row, key in enumerate(grid.keys):
        accuracy, cost = grid.values(key)
        below = [grid.values(other) for other in trained if other[0] == key[0] and np.all(np.array(other) <= key)]
        above = [grid.values(other) for other in trained if other[0] == key[0] and np.all(np.array(other) >= key)]
        assert bounds.lower[row, 0] == max((-a for a, _ in above if a not in floor), default=-np.inf) <= -accuracy
        assert bounds.upper[row, 0] == min((-a for a, _ in below if a not in floor), default=np.inf) >= -accuracy
        assert bounds.lower[row, 1] == max((c for _, c in below if c not in ceiling), default=-np.inf) <= cost
        assert bounds.upper[row, 1] == min((c for _, c in above if c not in ceiling), default=np.inf) >= cost
    assert not archive.violations.any()
    assert not archive.slack.any()


def test_an_equal_cost_does_not_prune() -> None:
    grid = Grid(np.array([[0.1, 0.2, 0.3], [0.0, 0.4, 0.5]]), np.array([[1.0, 2.0, 3.0], [0.5, 2.0, 3.0]]))
    archive = archive_of(grid, [(0, 2), (1, 1)])
    x = proposal(grid, (0, 1))
    bounds = archive.bounds([x])
    equal, higher = np.array([[bounds.lower[0, 0], 2.0]]), np.array([[bounds.lower[0, 0], 2.1]])
    assert archive.dominators(equal, bounds, COST_KNOWN).tolist() == [-1]
    assert archive.dominators(higher, bounds, COST_KNOWN).tolist() == [1]


def test_all_violations_are_counted_and_noise_is_tolerated() -> None:
    noisy = [0.1, 0.2, 0.19, 0.3, 0.4, 0.39, 0.5, 0.6, 0.59, 0.7]
    grid = Grid(np.array([noisy]), np.arange(10.0)[None])
    archive = archive_of(grid, grid.keys)
    assert archive.comparisons == 45
    assert archive.violations.tolist() == [3, 0]
    # Six rows of ten cannot all be wrong.
    assert not archive.contradictions.rows.any()
    np.testing.assert_allclose(archive.slack, [0.01, 0.0])
    assert archive_of(grid, grid.keys, tolerance=0.015).violations.tolist() == [0, 0]


def test_a_single_contradiction_blames_both_rows_and_further_ones_the_wrong_row() -> None:
    # The largest is trained first and diverges.
    grid = Grid(np.array([[0.1, 0.2, 0.3, 0.4, 0.0]]), np.array([[1.0, 2.0, 3.0, 4.0, 5.0]]))
    order: list[Key] = [(0, 4), (0, 0), (0, 2), (0, 1), (0, 3)]
    contradicting = [
        [trained[row] for row in np.flatnonzero(archive_of(grid, trained).contradictions.rows[:, 0])]
        for trained in (order[:n] for n in range(1, 6))
    ]
    assert contradicting == [[], order[:2], order[:3], order[:1], order[:1]]
    archive = archive_of(grid, order)
    assert archive.violations.tolist() == [4, 0]
    assert not archive.slack.any()
    bounds = archive.bounds([proposal(grid, key) for key in grid.keys])
    assert bounds.lower[:, 0].tolist() == [-0.1, -0.2, -0.3, -0.4, -np.inf]


def test_a_diverged_training_that_scores_as_the_smallest_one_prunes_nothing() -> None:
    grid = Grid(np.array([[0.0, 0.2, 0.3, 0.4, 0.0]]), np.array([[1.0, 2.0, 3.0, 4.0, 5.0]]))
    archive = archive_of(grid, [(0, 0), (0, 4)])
    others = [proposal(grid, key) for key in grid.keys[1:4]]
    bounds = archive.bounds(others)
    costs = np.array([[np.nan, 2.0], [np.nan, 3.0], [np.nan, 4.0]])
    corners = np.where(COST_KNOWN, costs, bounds.lower)
    assert archive.dominators(corners, bounds, COST_KNOWN).tolist() == [-1, -1, -1]


@given(
    st.integers(0, 10**6),
    st.sampled_from([(1, 4, 4), (2, 4, 4), (1, 3, 3, 3), (1, 9)]),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.3, 5.0]),
    st.booleans(),
)
def test_rows_that_contradict_the_rest_prune_no_pareto_point(
    seed: int, shape: tuple[int, ...], n_wrong: int, scored: float, knows_cost: bool
) -> None:
    true = Grid.additive(seed, shape)
    rng = np.random.default_rng(seed)
    trained = [true.keys[index] for index in rng.permutation(len(true.keys))[: 2 * len(true.keys) // 3]]
    wrong = trained[:n_wrong]
    seen = Grid(true.accuracy.copy(), true.cost)
    for key in wrong:
        seen.accuracy[key] = scored
    archive = archive_of(seen, trained)
    contradicting = {trained[row] for row in np.flatnonzero(archive.contradictions.rows.any(axis=1))}
    others = [key for key in true.keys if key not in trained]
    proposals = [proposal(true, key) for key in others]
    bounds = archive.bounds(proposals)
    known = COST_KNOWN if knows_cost else NONE_KNOWN
    losses = np.array([(-accuracy, cost) for accuracy, cost in map(true.values, others)])
    by = archive.dominators(np.where(known, losses, bounds.lower), bounds, known)
    assert not {trained[row] for row in by if row >= 0} & contradicting
    assert not {trained[row] for row in bounds.witness[:, 0] if row >= 0} & contradicting
    # A wrong row that is not found agrees with all rows that it can be compared with.
    if set(wrong) <= contradicting:
        pruned = {key for key, row in zip(others, by, strict=True) if row >= 0}
        assert not pruned & true.pareto_keys()


@given(st.integers(0, 10**6), st.integers(1, 3))
def test_exactly_the_few_diverged_trainings_among_many_are_found(seed: int, n_wrong: int) -> None:
    true = Grid.additive(seed, (1, 4, 4, 3))
    rng = np.random.default_rng(seed)
    largest = sorted(true.keys, key=sum)[-12:]
    wrong = {largest[index] for index in rng.choice(len(largest), n_wrong, replace=False)}
    seen = Grid(true.accuracy.copy(), true.cost)
    for key in wrong:
        seen.accuracy[key] = 0.0
    archive = archive_of(seen, [true.keys[index] for index in rng.permutation(len(true.keys))])
    found = {archive.proposals[row].architecture for row in np.flatnonzero(archive.contradictions.rows[:, 0])}  # type: ignore[union-attr]
    assert found == wrong
    assert not archive.slack.any()
    assert not archive.violated_too_often.any()


def test_no_architecture_as_large_as_one_that_ran_out_of_memory_fits() -> None:
    grid = Grid.additive(0, (2, 3, 3))
    archive = Archive(RISES, np.zeros(2))
    archive.add_too_large(proposal(grid, (0, 1, 1)))
    too_large = {key for key in grid.keys if archive.is_too_large(proposal(grid, key))}
    assert too_large == {(0, 1, 1), (0, 1, 2), (0, 2, 1), (0, 2, 2)}


def test_architectures_no_larger_than_a_trained_one_fit() -> None:
    grid = Grid.additive(0, (2, 3, 3))
    small, large = proposal(grid, (0, 1, 1)), proposal(grid, (0, 2, 2))
    archive = Archive(RISES, np.zeros(2))
    archive.add_too_large(small)
    assert archive.is_too_large(large)
    archive.add(0, proposal(grid, (0, 1, 2)), [0.0, 0.0], 0.0)
    assert not archive.is_too_large(small)
    assert not archive.is_too_large(large)
    # The order of the two does not matter.
    archive.add_too_large(small)
    assert not archive.is_too_large(small)
    archive.add_too_large(large)
    assert archive.is_too_large(large)


@given(problems)
def test_the_front_consists_of_the_non_dominated_rows(grid: Grid) -> None:
    archive = archive_of(grid, grid.keys)
    front = {grid.values(grid.keys[row]) for row in archive.front}
    assert front == {grid.values(key) for key in grid.pareto_keys()}


@given(problems, st.integers(1, 8))
def test_a_former_front_is_that_of_the_first_rows(grid: Grid, n_rows: int) -> None:
    now, then = archive_of(grid, grid.keys), archive_of(grid, grid.keys[:n_rows])
    np.testing.assert_array_equal(now.front_of_first(n_rows), then.front)
