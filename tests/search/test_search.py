"""What the searches of all stages have in common: a study is resumed, and its record says what it searches."""

from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe import Recipe
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.search.final import FinalSearch
from smnas_optuna.search.listed import Listed
from smnas_optuna.search.modular import Candidate, ModularSearch
from smnas_optuna.search.search import Search
from smnas_optuna.search.structural import StructuralSearch
from smnas_optuna.search.studies import lineage_of, open_study, present_searches, refuse_other_search, search_of
from smnas_optuna.search.transfer import TransferSearch
from smnas_optuna.study.storage import open_storage

_ARCHITECTURE = Architecture.parse("64x48 ResNet18(w=8) FPN(P2-P4,c=16) RPN 2FC")


def structural(recipe: Recipe) -> Search:
    return StructuralSearch(recipe)


def modular(recipe: Recipe) -> Search:
    return ModularSearch(recipe, Candidate(3, "tiny/structural", 7, _ARCHITECTURE))


def transfer(recipe: Recipe) -> Search:
    return TransferSearch(recipe, (Listed(_ARCHITECTURE, "tiny/structural trial 7"),))


def final(recipe: Recipe) -> Search:
    listed = (Listed(_ARCHITECTURE, "tiny/structural trial 7"),)
    return FinalSearch(recipe, listed, "T7", 9, 1, starts_from_trial=True)


@pytest.fixture(params=[structural, modular, transfer, final])
def search(request: pytest.FixtureRequest, tiny_recipe: Path) -> Search:
    made: Search = request.param(load_recipe(str(tiny_recipe)))
    return made


@pytest.fixture
def storage(tmp_path: Path) -> optuna.storages.RDBStorage:
    return open_storage(f"sqlite:///{tmp_path}/study.db")


def test_a_study_tells_what_it_searches(storage: optuna.storages.RDBStorage, search: Search) -> None:
    study = open_study(storage, search)
    assert study.study_name == search.study_name == f"tiny/{search.path}"
    assert search_of(study) == search
    assert present_searches(storage, search.recipe) == [search]
    # Once more it is the same study with the same queue.
    assert len(open_study(storage, search).trials) == len(study.trials) == len(search.starts)


def test_the_queue_begins_with_the_starts_and_each_is_in_the_space(
    storage: optuna.storages.RDBStorage, search: Search
) -> None:
    study = open_study(storage, search)
    assert [search.space.suggest(study.ask()) for _ in search.starts] == list(search.starts)
    assert set(search.references) <= set(search.starts)


def test_a_study_of_another_training_is_refused_whatever_the_stage(
    storage: optuna.storages.RDBStorage, search: Search
) -> None:
    open_study(storage, search)
    settings = search.settings
    other = settings.model_copy(update={"training": settings.training.model_copy(update={"lr": 9.0})})
    recipe = search.recipe.model_copy(update={search.stage: other})
    changed = replace(search, recipe=recipe)  # type: ignore[type-var]  # all are dataclasses
    with pytest.raises(UserError, match=rf"differs in {search.stage}\.training\.lr"):
        refuse_other_search(storage, changed)


def test_the_lineage_needs_no_recipe_that_can_be_read(storage: optuna.storages.RDBStorage, search: Search) -> None:
    study = open_study(storage, search)
    study.set_user_attr("recipe", {"name": "of another version"})
    with pytest.raises(UserError, match="its recipe cannot be used"):
        search_of(study)
    assert (
        lineage_of(study)
        == {
            "structural": "",
            "modular/C3": f"C3 refines trial 7 of tiny/structural: {_ARCHITECTURE}",
            "transfer": f"Trained here: {_ARCHITECTURE} (tiny/structural trial 7)",
            "final/T7": f"Trained here: {_ARCHITECTURE} (tiny/structural trial 7)",
        }[search.path]
    )
