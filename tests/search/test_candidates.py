import itertools
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smnas_optuna.errors import UserError
from smnas_optuna.recipe.recipe import Recipe
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.search.candidates import modular_searches, pick
from smnas_optuna.search.structural import StructuralSearch
from smnas_optuna.search.studies import open_study
from smnas_optuna.study.storage import open_storage


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(str(tiny_recipe), ["modular.candidates=3"])


@pytest.fixture
def storage(tmp_path: Path) -> optuna.storages.RDBStorage:
    return open_storage(f"sqlite:///{tmp_path}/study.db")


def study_of(points: list[tuple[float, float]]) -> optuna.Study:
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.add_trials([optuna.trial.create_trial(values=list(point)) for point in points])
    return study


def search_structurally(storage: optuna.storages.RDBStorage, recipe: Recipe, points: list[tuple[float, float]]) -> None:
    """Fill stage one with random architectures that have these mAPs and times."""
    study = open_study(storage, StructuralSearch(recipe))
    for values in points:
        trial = study.ask()
        trial.set_user_attr("architecture", str(recipe.structural.space.suggest(trial)))
        study.tell(trial, values)


# mAP and time; trial 2 is dominated, trial 3 adds most between the ends.
POINTS = [(0.5, 9.0), (0.1, 1.0), (0.1, 5.0), (0.4, 3.0), (0.41, 4.0)]


def test_the_ends_of_the_front_and_the_largest_contributions_between_are_picked_the_cheapest_first() -> None:
    study = study_of(POINTS)
    assert [trial.number for trial in pick(study, 4)] == [1, 3, 4, 0]
    assert [trial.number for trial in pick(study, 3)] == [1, 3, 0]
    assert [trial.number for trial in pick(study, 2)] == [1, 0]
    assert [trial.number for trial in pick(study, 1)] == [0]
    assert pick(study_of([]), 3) == []


def dominated_area(points: list[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Return the area between some points (accuracy, cost) and a reference point that is no better than any."""
    area, below = 0.0, reference[0]
    for accuracy, cost in sorted(points, key=lambda point: point[1]):
        area += max(0.0, accuracy - below) * (reference[1] - cost)
        below = max(below, accuracy)
    return area


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=14), st.integers(1, 6))
def test_what_is_picked_is_distinct_has_both_ends_and_covers_the_most_between_them(
    points: list[tuple[int, int]], count: int
) -> None:
    study = study_of([(float(accuracy), float(cost)) for accuracy, cost in points])
    front = sorted({(trial.values[0], trial.values[1]) for trial in study.best_trials}, key=lambda point: point[1])
    picked = [(trial.values[0], trial.values[1]) for trial in pick(study, count)]
    assert picked == sorted(set(picked), key=lambda point: point[1])
    assert set(picked) <= set(front)
    assert len(picked) == min(count, len(front))
    assert picked[-1] == front[-1]
    if len(picked) > 1:
        assert picked[0] == front[0]
        reference = (front[0][0], front[-1][1])
        others = itertools.combinations(front[1:-1], len(picked) - 2)
        best = max(dominated_area([front[0], *chosen, front[-1]], reference) for chosen in others)
        assert dominated_area(picked, reference) == best


def test_a_point_that_only_a_third_objective_keeps_on_the_front_is_no_candidate() -> None:
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    for values in ((0.1, 1.0, 9.0), (0.2, 2.0, 9.0), (0.15, 3.0, 1.0), (0.3, 4.0, 9.0), (0.25, 4.0, 1.0)):
        study.add_trial(optuna.trial.create_trial(values=list(values)))
    assert len(study.best_trials) == 5
    assert [trial.number for trial in pick(study, 5)] == [0, 1, 3]


def test_each_candidate_has_a_study_that_knows_its_parent(storage: optuna.storages.RDBStorage, recipe: Recipe) -> None:
    search_structurally(storage, recipe, POINTS)
    searches = modular_searches(storage, recipe)
    assert [search.study_name for search in searches] == [f"tiny/modular/C{k}" for k in range(3)]
    parents = optuna.load_study(study_name="tiny/structural", storage=storage).trials
    for search, number in zip(searches, [1, 3, 0], strict=True):
        study = open_study(storage, search)
        recorded = study.user_attrs["candidate"]
        assert recorded["study"] == "tiny/structural"
        assert recorded["trial"] == number
        assert recorded["architecture"] == parents[number].user_attrs["architecture"]
        first = study.ask()
        assert str(search.space.suggest(first)) == recorded["baseline"]


def test_candidates_stay_when_the_front_moves_and_more_are_added_when_more_are_wanted(
    storage: optuna.storages.RDBStorage, recipe: Recipe
) -> None:
    search_structurally(storage, recipe, POINTS)
    before = modular_searches(storage, recipe)
    for search in before:
        open_study(storage, search)
    search_structurally(storage, recipe, [(0.9, 0.5)])
    assert modular_searches(storage, recipe) == before
    more = recipe.model_copy(update={"modular": recipe.modular.model_copy(update={"candidates": 5})})  # type: ignore[union-attr]
    assert [search.candidate.trial for search in modular_searches(storage, more)] == [1, 3, 0, 5]


def test_trials_can_be_named(storage: optuna.storages.RDBStorage, recipe: Recipe) -> None:
    search_structurally(storage, recipe, POINTS)
    searches = modular_searches(storage, recipe, [2, 0, 2])
    assert [search.candidate.trial for search in searches] == [2, 0]
    for search in searches:
        open_study(storage, search)
    again = modular_searches(storage, recipe, [4, 0])
    assert [str(search.candidate) for search in again] == ["C2", "C1"]


def test_without_completed_trials_there_is_nothing_to_take_on(
    storage: optuna.storages.RDBStorage, recipe: Recipe
) -> None:
    with pytest.raises(UserError, match="study 'tiny/structural': not in the database"):
        modular_searches(storage, recipe)
    study = open_study(storage, StructuralSearch(recipe))
    with pytest.raises(UserError, match="has no completed trial"):
        modular_searches(storage, recipe)
    study.ask()
    with pytest.raises(UserError, match="trial 0 of 'tiny/structural' is not completed; those are none"):
        modular_searches(storage, recipe, [0])
