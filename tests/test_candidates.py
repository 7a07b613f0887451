from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smnas_optuna.candidates import modular_searches, pick
from smnas_optuna.errors import UserError
from smnas_optuna.recipe import Recipe
from smnas_optuna.recipe_file import load_recipe
from smnas_optuna.search import Search
from smnas_optuna.storage import open_storage
from smnas_optuna.study import open_study


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
    study = open_study(storage, Search(recipe))
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


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(1, 9)), min_size=1, max_size=12, unique=True),
    st.integers(1, 6),
)
def test_what_is_picked_lies_on_the_front_and_is_as_many_as_can_be(
    points: list[tuple[float, float]], count: int
) -> None:
    study = study_of(points)
    picked = [trial.number for trial in pick(study, count)]
    front = {trial.number for trial in study.best_trials}
    assert set(picked) <= front
    assert len(picked) == len(set(picked)) == min(count, len(front))


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
    assert [search.candidate and search.candidate.trial for search in modular_searches(storage, more)] == [1, 3, 0, 5]


def test_trials_can_be_named(storage: optuna.storages.RDBStorage, recipe: Recipe) -> None:
    search_structurally(storage, recipe, POINTS)
    searches = modular_searches(storage, recipe, [2, 0, 2])
    assert [search.candidate and search.candidate.trial for search in searches] == [2, 0]
    for search in searches:
        open_study(storage, search)
    again = modular_searches(storage, recipe, [4, 0])
    assert [str(search.candidate) for search in again] == ["C2", "C1"]


def test_without_completed_trials_there_is_nothing_to_take_on(
    storage: optuna.storages.RDBStorage, recipe: Recipe
) -> None:
    with pytest.raises(UserError, match="study 'tiny/structural': not in the database"):
        modular_searches(storage, recipe)
    study = open_study(storage, Search(recipe))
    with pytest.raises(UserError, match="has no completed trial"):
        modular_searches(storage, recipe)
    study.ask()
    with pytest.raises(UserError, match="trial 0 of 'tiny/structural' is not completed; those are none"):
        modular_searches(storage, recipe, [0])
