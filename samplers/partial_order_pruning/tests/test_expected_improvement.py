import numpy as np
import pytest

from ..expected_improvement import expected_hypervolume_improvement, expected_shortfall, non_dominated_boxes


@pytest.mark.parametrize("n_objectives", [1, 2, 3, 4])
def test_boxes_are_disjoint_and_fill_the_undominated_region(n_objectives: int) -> None:
    rng = np.random.default_rng(n_objectives)
    front, points = rng.random((6, n_objectives)), rng.uniform(-0.2, 1.1, (2000, n_objectives))
    lower, upper = non_dominated_boxes(front, np.full(n_objectives, 1.1))
    inside = np.all((lower < points[:, None]) & (points[:, None] <= upper), axis=2).sum(axis=1)
    dominated = np.any(np.all(front[None] < points[:, None], axis=2), axis=1)
    np.testing.assert_array_equal(inside, np.where(dominated, 0, 1))


@pytest.mark.parametrize("n_objectives", [1, 2, 3])
def test_closed_form_agrees_with_sampling(n_objectives: int) -> None:
    rng = np.random.default_rng(n_objectives)
    boxes = non_dominated_boxes(rng.random((5, n_objectives)) + 0.2, np.full(n_objectives, 1.1))
    mean, deviation = rng.random((4, n_objectives)) * 0.7, np.full((4, n_objectives), 0.2)
    deviation[1, 0] = 0.0
    lower, upper = np.full_like(mean, -0.1), np.full_like(mean, 0.8)
    expected = expected_hypervolume_improvement(boxes, mean, deviation, lower, upper)
    for row in range(4):
        samples = mean[row] + deviation[row] * rng.standard_normal((200_000, n_objectives))
        samples = samples[np.all((samples >= lower[row]) & (samples <= upper[row]), axis=1)]
        gained = sum(
            np.prod(np.maximum(end - np.maximum(samples, start), 0), axis=1) for start, end in zip(*boxes, strict=True)
        )
        error = np.std(gained) / np.sqrt(len(samples))
        assert abs(expected[row] - np.mean(gained)) < 5 * error + 1e-12


def test_with_bounds_far_from_the_mean_the_nearer_bound_is_expected() -> None:
    one = np.ones(1)
    assert expected_shortfall(2.0 * one, 50.0 * one, one, 0.0 * one, one)[0] == pytest.approx(1.0)
    assert expected_shortfall(2.0 * one, -50.0 * one, one, 0.0 * one, one)[0] == pytest.approx(2.0)


def test_a_known_loss_is_exact_whatever_its_bounds() -> None:
    one = np.ones(1)
    assert expected_shortfall(2.0 * one, 0.5 * one, 0.0 * one, one, one)[0] == 1.5
