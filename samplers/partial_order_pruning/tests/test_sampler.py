import copy
import math
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from .. import PartialOrderPruningSampler
from .problems import Grid, create_study

SELECTIONS = ["ehvi", "evolution"]


def sampler_for(grid: Grid, **options: Any) -> PartialOrderPruningSampler:
    return PartialOrderPruningSampler(grid.search_space, grid.order, grid.known(), **{"seed": 0, **options})


def architectures(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [tuple(trial.params.values()) for trial in study.trials]


@pytest.mark.parametrize("selection", SELECTIONS)
def test_no_architecture_is_proposed_twice_and_the_search_ends_with_the_whole_front(selection: Any) -> None:
    grid = Grid.additive(1, (2, 4, 4))
    study = create_study(sampler_for(grid, selection=selection))
    study.optimize(grid.objective, n_trials=100)
    trained = Counter(architectures(study)[:-1])
    assert max(trained.values()) == 1
    assert grid.pareto_keys() <= set(trained)
    assert len(trained) < len(grid.keys)
    assert study.trials[-1].state == optuna.trial.TrialState.PRUNED
    assert not study.trials[-1].params


def test_the_front_is_found_sooner_than_by_random_search() -> None:
    grid = Grid.additive(3, (3, 4, 4, 4))
    areas = []
    for sampler in (sampler_for(grid), optuna.samplers.RandomSampler(seed=0)):
        study = create_study(sampler)
        study.optimize(grid.objective, n_trials=30)
        areas.append(grid.hypervolume([(trial.values[0], trial.values[1]) for trial in study.trials]))
    assert areas[0] > areas[1] + 0.02


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("knows_space", [True, False])
def test_the_same_seed_and_study_propose_the_same_also_after_a_restart(
    selection: Any, knows_space: bool, tmp_path: Path
) -> None:
    grid = Grid.additive(2, (2, 5, 5))

    def make() -> PartialOrderPruningSampler:
        return sampler_for(grid, selection=selection) if knows_space else PartialOrderPruningSampler(seed=0)

    study = create_study(make())
    study.optimize(grid.objective, n_trials=25)
    storage = f"sqlite:///{tmp_path}/study.db"
    for n_trials in (7, 11, 7):
        resumed = create_study(make(), storage=storage, study_name="again", load_if_exists=True)
        resumed.optimize(grid.objective, n_trials=n_trials)
    assert architectures(resumed) == architectures(study)
    other = create_study(sampler_for(grid, seed=1))
    other.optimize(grid.objective, n_trials=25)
    assert architectures(other) != architectures(study)


def proposals_after(study: optuna.Study, sampler: PartialOrderPruningSampler) -> list[dict[str, Any]]:
    """Return what a sampler proposes for the next trials of a study, on a copy of it."""
    copied = create_study(sampler)
    copied.add_trials(study.trials)
    return [copied.ask(study.trials[0].distributions).params for _ in range(3)]


def test_a_pickled_or_copied_sampler_proposes_the_same_and_a_reseeded_one_does_not() -> None:
    grid = Grid.additive(2, (3, 20, 20, 20))
    sampler = PartialOrderPruningSampler(seed=3)
    study = create_study(sampler)
    study.optimize(grid.objective, n_trials=15)
    others = [pickle.loads(pickle.dumps(sampler)), copy.deepcopy(sampler)]
    expected = proposals_after(study, sampler)
    assert [proposals_after(study, other) for other in others] == [expected, expected]
    reseeded = []
    for _ in range(6):
        sampler.reseed_rng()
        reseeded.append(proposals_after(study, sampler))
    # One in six proposes the same by chance.
    assert any(proposals != expected for proposals in reseeded)


KERNELS: list[list[Any]] = [
    [[3, 3], [5, 5], [3, 5]],
    [{"size": 3}, {"size": 5}, {"size": 7}],
    [(3, 3), (5, 5), (3, 5)],
]


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
@pytest.mark.parametrize("kernels", KERNELS, ids=["lists", "dictionaries", "tuples"])
@pytest.mark.parametrize("knows_space", [True, False])
@pytest.mark.parametrize("is_stored", [True, False])
def test_unhashable_choices_are_tried_once_each(
    kernels: list[Any], knows_space: bool, is_stored: bool, tmp_path: Path
) -> None:
    def suggest(trial: Any) -> tuple[Any, int]:
        return trial.suggest_categorical("kernel", kernels), trial.suggest_int("depth", 1, 4)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        kernel, depth = suggest(trial)
        return depth**0.5 + 0.1 * kernels.index(kernel), float(depth)

    sampler = PartialOrderPruningSampler(
        suggest if knows_space else None,
        (lambda network: (network[:1], [network[1]])) if knows_space else None,
        n_startup_trials=4,
        tolerance=math.inf,
        seed=0,
    )
    study = create_study(sampler, storage=f"sqlite:///{tmp_path}/study.db" if is_stored else None)
    study.optimize(objective, n_trials=12)
    assert len({str(trial.params) for trial in study.trials}) == 12


@pytest.mark.parametrize("exclusive", [False, True])
def test_running_trials_have_different_architectures_that_are_spread_out(exclusive: bool) -> None:
    grid = Grid.additive(4, (2, 5, 5))
    study = create_study(sampler_for(grid, exclusive=exclusive))
    study.optimize(grid.objective, n_trials=12)
    running = [study.ask() for _ in range(8)]
    proposed = [grid.search_space(trial) for trial in running]
    assert len({*proposed, *architectures(study)[:12]}) == 20


def test_enqueued_and_imported_trials_are_used_like_any_other() -> None:
    grid = Grid.additive(4, (2, 5, 5))
    study = create_study(sampler_for(grid))
    first = {"group": 1, "capacity0": 4, "capacity1": 0}
    study.enqueue_trial(first)
    study.enqueue_trial({"group": 0, "capacity0": 2})
    for key in [(0, 0, 0), (0, 4, 4)]:
        params = {"group": key[0], "capacity0": key[1], "capacity1": key[2]}
        finished = optuna.create_trial(
            params=params, distributions=dict(_distributions(grid)), values=list(grid.values(key))
        )
        study.add_trial(finished)
    study.optimize(grid.objective, n_trials=20)
    asked = [trial for trial in study.trials if "fixed_params" in trial.system_attrs]
    assert asked[0].params == first
    assert (asked[1].params["group"], asked[1].params["capacity0"]) == (0, 2)
    assert max(Counter(map(str, (trial.params for trial in study.trials))).values()) == 1


def _distributions(grid: Grid) -> dict[str, optuna.distributions.BaseDistribution]:
    study = create_study(optuna.samplers.RandomSampler())
    study.optimize(grid.objective, n_trials=1)
    return study.trials[0].distributions


def test_the_reason_of_a_dominated_trial_names_the_trials_that_prove_it() -> None:
    grid = Grid(np.array([[0.1, 0.2, 0.3], [0.0, 0.4, 0.5]]), np.array([[1.0, 2.0, 3.0], [0.5, 1.9, 3.0]]))
    sampler = PartialOrderPruningSampler(grid.search_space, grid.order)
    study = create_study(sampler)
    for key in [(0, 2), (1, 1)]:
        study.enqueue_trial({"group": key[0], "capacity0": key[1]})
    study.optimize(grid.objective, n_trials=2)
    study.enqueue_trial({"group": 0, "capacity0": 1})
    trial = study.ask()
    grid.search_space(trial)
    assert sampler.is_dominated(study, trial, {1: 1.9}) is None
    reason = sampler.is_dominated(study, trial, {1: 2.0})
    assert reason == "dominated: trial 1 is better even than the best that this can be, as trial 0 bounds it"


def test_architectures_that_are_dominated_even_at_best_are_never_proposed() -> None:
    grid = Grid.additive(5, (2, 5, 5))
    sampler = sampler_for(grid)
    study = create_study(sampler)
    reasons = []

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        key = grid.search_space(trial)
        reasons.append(sampler.is_dominated(study, trial))
        return grid.values(key)

    study.optimize(objective, n_trials=20)
    assert set(reasons) == {None}


@pytest.mark.parametrize(
    ("attributes", "bounds_memory"),
    [
        ({"outcome": "out_of_memory"}, True),
        ({"outcome": "too_large", "reason": "the device has 0.5 GiB"}, True),
        ({"outcome": "too_costly"}, True),
        ({"outcome": "crashed", "reason": "out of memory, says the log of another program"}, False),
        # Of a study from before there were outcomes.
        ({"reason": "CUDA out of memory"}, True),
        ({"reason": "loss became nan"}, False),
    ],
)
def test_no_architecture_larger_than_one_that_did_not_fit_is_proposed(
    attributes: dict[str, str], bounds_memory: bool
) -> None:
    grid = Grid.additive(6, (1, 5, 5))
    study = create_study(sampler_for(grid, tolerance=math.inf))
    study.enqueue_trial({"group": 0, "capacity0": 2, "capacity1": 2})

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        key = grid.search_space(trial)
        if key == (0, 2, 2):
            for name, value in attributes.items():
                trial.set_user_attr(name, value)
            raise MemoryError
        return grid.values(key)

    study.optimize(objective, n_trials=25, catch=MemoryError)
    at_least_as_large = [
        trial.params
        for trial in study.trials[1:]
        if len(trial.params) == 3 and trial.params["capacity0"] >= 2 and trial.params["capacity1"] >= 2
    ]
    assert study.trials[0].state == optuna.trial.TrialState.FAIL
    assert bool(at_least_as_large) != bounds_memory


@pytest.mark.parametrize("knows_cost", [True, False])
def test_trainings_that_diverge_do_not_end_the_search(knows_cost: bool) -> None:
    true = Grid.additive(0, (1, 3, 3, 3, 3, 3))
    rng = np.random.default_rng(0)
    largest = sorted(true.keys, key=sum)[-len(true.keys) // 10 :]
    # The very largest, which the start design asks for, and a third of the others; they score as the smallest does.
    seen = Grid(true.accuracy.copy(), true.cost)
    for key in largest:
        if key == largest[-1] or rng.random() < 0.3:
            seen.accuracy[key] = true.accuracy.min()
    areas = []
    for order in (seen.order, None):
        known = seen.known() if knows_cost else None
        study = create_study(PartialOrderPruningSampler(seen.search_space, order, known, seed=0))
        study.optimize(seen.objective, n_trials=40)
        assert len(study.trials) == 40
        areas.append(seen.hypervolume([(trial.values[0], trial.values[1]) for trial in study.trials]))
    assert areas[0] > 0.97 * seen.hypervolume([seen.values(key) for key in seen.keys])
    assert areas[0] > areas[1] - 0.01


def test_an_order_with_violations_hardly_reduces_the_hypervolume() -> None:
    kept = []
    for seed in range(3):
        grid = Grid.additive(seed, (2, 5, 5, 4))
        rng = np.random.default_rng(seed)
        # Swapping the accuracies of some architectures violates the order for about one pair in twenty.
        flat = grid.accuracy.reshape(-1)
        swapped = rng.choice(len(flat), size=(2, len(flat) // 25), replace=False)
        flat[swapped[0]], flat[swapped[1]] = flat[swapped[1]], flat[swapped[0]].copy()
        areas = []
        for tolerance in (0.0, math.inf):
            sampler = sampler_for(grid, tolerance=tolerance)
            study = create_study(sampler)
            study.optimize(grid.objective, n_trials=60)
            values = [(trial.values[0], trial.values[1]) for trial in study.trials if trial.values]
            areas.append(grid.hypervolume(values))
            if tolerance == 0.0:
                assert sampler.order_violations(study)[0][0] > 0
        kept.append(areas[0] / areas[1])
    assert np.mean(kept) > 0.99


@pytest.mark.parametrize("directions", [["minimize"], ["maximize"], ["minimize", "maximize", "minimize"]])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_any_number_of_objectives_and_directions(directions: list[Any], selection: Any) -> None:
    sampler = PartialOrderPruningSampler(selection=selection, n_startup_trials=4, seed=0)
    study = optuna.create_study(directions=directions, sampler=sampler)

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        x, y = trial.suggest_float("x", -1, 1), trial.suggest_float("y", 1e-3, 1, log=True)
        kind = trial.suggest_categorical("kind", ["a", "b"])
        z = trial.suggest_int("z", 0, 5) if kind == "a" else 2
        return (x**2 + y + z, x - y, z + y)[: len(directions)]

    study.optimize(objective, n_trials=30)
    assert len(study.trials) == 30


def test_architectures_that_violate_constraints_are_soon_avoided() -> None:
    grid = Grid.additive(7, (3, 5, 5, 4))
    study = create_study(sampler_for(grid, tolerance=math.inf))

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        accuracy, cost = grid.objective(trial)
        trial.set_constraint("cost", cost - 2.0)
        return accuracy, cost

    study.optimize(objective, n_trials=40)
    feasible = [trial for trial in study.trials[15:] if trial.values[1] <= 2.0]
    assert len(feasible) > 0.8 * len(study.trials[15:])


def test_decreasing_names_an_objective_that_falls_with_capacity() -> None:
    grid = Grid.additive(8, (2, 5, 5))
    sampler = sampler_for(grid, decreasing=[0])
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        accuracy, cost = grid.objective(trial)
        return 1.0 - accuracy, cost

    study.optimize(objective, n_trials=30)
    assert sampler.order_violations(study)[0][0] == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"selection": "best"}, "selection must be 'ehvi' or 'evolution', but got 'best'"),
        ({"n_startup_trials": 0}, "n_startup_trials must be at least 1, but got 0"),
        ({"tolerance": -1.0}, "tolerance must not be negative, but got -1.0"),
    ],
)
def test_the_error_of_a_wrong_argument_names_it(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        PartialOrderPruningSampler(**options)


def test_a_pruner_that_filters_the_study_does_not_disturb() -> None:
    grid = Grid.additive(9, (2, 5, 5))
    sampler = PartialOrderPruningSampler(grid.search_space, grid.order, decreasing=[0], tolerance=math.inf, seed=0)
    study = optuna.create_study(sampler=sampler, pruner=optuna.pruners.HyperbandPruner(max_resource=9))

    def objective(trial: optuna.Trial) -> float:
        accuracy, _ = grid.objective(trial)
        trial.report(accuracy, 1)
        return 1.0 - accuracy

    study.optimize(objective, n_trials=20)
    assert len(study.trials) == 20


def test_an_order_that_is_violated_too_often_is_not_used() -> None:
    grid = Grid.additive(8, (3, 5, 5))
    sampler = PartialOrderPruningSampler(grid.search_space, grid.order, seed=0)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        accuracy, cost = grid.objective(trial)
        return 1.0 - accuracy, cost

    study.optimize(objective, n_trials=70)
    trained = [(1.0 - trial.values[0], trial.values[1]) for trial in study.trials if trial.values]
    assert sampler.order_violations(study)[0][0] > 0
    assert grid.hypervolume(trained) > 0.999 * grid.hypervolume([grid.values(key) for key in grid.keys])


def test_a_restart_between_two_fits_does_not_change_the_proposals() -> None:
    grid = Grid.additive(2, (3, 6, 6, 6))
    study = create_study(sampler_for(grid, tolerance=math.inf))
    study.optimize(grid.objective, n_trials=175)
    restarted = create_study(sampler_for(grid, tolerance=math.inf))
    restarted.add_trials(study.trials)
    proposals = []
    for each in (study, restarted):
        trial = each.ask()
        proposals.append(grid.search_space(trial))
    assert proposals[0] == proposals[1]
