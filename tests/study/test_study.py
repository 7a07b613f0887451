from pathlib import Path

import optuna
import pytest

from smnas_optuna.errors import UserError
from smnas_optuna.recipe.recipe import Recipe
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.search.structural import StructuralSearch
from smnas_optuna.search.studies import open_study, search_of
from smnas_optuna.study.storage import open_storage
from smnas_optuna.study.study import agree_on_device, load_study


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(str(tiny_recipe))


def test_a_new_study_has_the_recipes_name_metrics_directions_and_seeds(url: str, recipe: Recipe) -> None:
    study = open_study(open_storage(url), StructuralSearch(recipe))
    assert study.study_name == "tiny/structural"
    assert study.metric_names == ["map", "latency_ms"]
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert str(recipe.structural.space.suggest(study.ask())) == recipe.structural.seeds[0]


def test_a_study_has_an_identifier_that_no_other_has(url: str, recipe: Recipe, tmp_path: Path) -> None:
    identifiers = [
        open_study(open_storage(each), StructuralSearch(recipe)).user_attrs["id"]
        for each in (url, url, f"sqlite:///{tmp_path}/other.db")
    ]
    assert identifiers[0] == identifiers[1] != identifiers[2]


def test_opening_a_study_again_does_not_enqueue_its_seeds_again(url: str, recipe: Recipe) -> None:
    for _ in range(3):
        study = open_study(open_storage(url), StructuralSearch(recipe))
    assert len(study.trials) == 1


def test_an_empty_study_without_a_recipe_is_used(url: str, recipe: Recipe) -> None:
    # The process that created it was killed before it could record the recipe.
    optuna.create_study(storage=url, study_name="tiny/structural", directions=["maximize", "minimize"])
    assert open_study(open_storage(url), StructuralSearch(recipe)).user_attrs["recipe"]["name"] == "tiny"


def test_a_study_that_run_study_did_not_make_is_refused(url: str, recipe: Recipe) -> None:
    other = optuna.create_study(storage=url, study_name="tiny/structural", directions=["maximize", "minimize"])
    other.add_trial(optuna.trial.create_trial(values=[0, 1]))
    with pytest.raises(UserError, match="not made by run_study"):
        open_study(open_storage(url), StructuralSearch(recipe))


def test_another_recipe_of_the_same_name_is_refused_with_the_keys_that_differ(
    url: str, recipe: Recipe, tiny_recipe: Path
) -> None:
    open_study(open_storage(url), StructuralSearch(recipe))
    other = load_recipe(str(tiny_recipe), ["structural.training.epochs=2", "dataset.classes=3", "structural.trials=99"])
    with pytest.raises(UserError) as error:
        open_study(open_storage(url), StructuralSearch(other))
    assert "dataset.classes, structural.training.epochs;" in str(error.value)
    assert "trials" not in str(error.value).split("differs in")[1]
    assert load_study(url, "tiny/structural").user_attrs["recipe"] == recipe.model_dump(mode="json")


def test_the_same_seed_proposes_the_same_in_a_new_study_and_something_else_in_a_longer_one(
    tmp_path: Path, recipe: Recipe
) -> None:
    recipe = recipe.model_copy(update={"structural": recipe.structural.model_copy(update={"seeds": ()})})

    def propose(url: str) -> str:
        study = open_study(open_storage(url), StructuralSearch(recipe), seed=3)
        texts = [str(recipe.structural.space.suggest(study.ask())) for _ in range(6)]
        return " | ".join(texts)

    one, other = f"sqlite:///{tmp_path}/one.db", f"sqlite:///{tmp_path}/other.db"
    assert propose(one) == propose(other)
    assert propose(one) != propose(f"sqlite:///{tmp_path}/third.db")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nonsense", "not a database URL"),
        ("sqlite:////no/such/folder/study.db", "unable to open database file"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/db", "refused"),
        ("postgresql+psycopg://me:secret@127.0.0.1:port/db", "not a database URL"),
        ("sqlite://", "in-memory databases are not supported"),
        ("oracle://me:secret@127.0.0.1/db", "driver is not installed"),
    ],
)
def test_an_unusable_database_is_reported_in_one_line_without_the_password(url: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as error:
        open_storage(url)
    assert "secret" not in str(error.value)


def test_a_study_with_times_of_another_device_is_not_continued(url: str, recipe: Recipe) -> None:
    storage = open_storage(url)
    study = open_study(storage, StructuralSearch(recipe))
    here = {"name": "A", "driver": "1"}
    assert agree_on_device(study, storage, here) == "A"
    assert agree_on_device(study, storage, here) == "A"
    with pytest.raises(UserError, match="times were measured with driver 1, but this worker has driver 2"):
        agree_on_device(study, storage, {"name": "A", "driver": "2"})
    assert agree_on_device(study, storage, {"name": "A", "driver": "2"}, mixed=True) == "A (driver 2)"
    assert agree_on_device(study, storage, {"name": "B", "driver": "1"}, mixed=True) == "B"
    assert study.user_attrs["device"] == here


def test_times_of_an_earlier_version_are_not_mixed_with_those_of_folded_weights(url: str, recipe: Recipe) -> None:
    storage = open_storage(url)
    study = open_study(storage, StructuralSearch(recipe))
    here = {"name": "A", "precision": "float32", "layers": "eager"}
    # Former versions recorded the precision of training as that of timing.
    study.set_user_attr("device", {"name": "A", "precision": "mixed"})
    assert agree_on_device(study, storage, here) == "A"
    folded = {**here, "standardised weights": "folded"}
    with pytest.raises(
        UserError, match="with standardised weights computed, but this worker has standardised weights folded"
    ):
        agree_on_device(study, storage, folded)
    assert agree_on_device(study, storage, folded, mixed=True) == "A (standardised weights folded)"
    with pytest.raises(UserError, match="measured with layers eager, but this worker has layers compiled"):
        agree_on_device(study, storage, {**here, "layers": "compiled"})


def test_devices_may_differ_if_no_time_is_an_objective(url: str, tiny_recipe: Path) -> None:
    recipe = load_recipe(str(tiny_recipe), ["structural.objectives=[map, flops]"])
    storage = open_storage(url)
    study = open_study(storage, StructuralSearch(recipe))
    assert [agree_on_device(study, storage, {"name": name}) for name in ("A", "B")] == ["A", "B"]


def test_the_message_about_a_study_that_is_no_search_says_why(url: str, recipe: Recipe) -> None:
    storage = open_storage(url)
    study = open_study(storage, StructuralSearch(recipe))
    assert search_of(study).recipe == recipe
    recorded = study.user_attrs["recipe"]
    study.set_user_attr("recipe", {**recorded, "imports": ["absent_module"]})
    with pytest.raises(UserError, match=r"its recipe.* cannot be used: imports: absent_module cannot be imported"):
        search_of(study)
    study.set_user_attr("recipe", {**recorded, "structural": {**recorded["structural"], "trials": 0}})
    with pytest.raises(UserError, match=r"its recipe.* cannot be used: structural.trials: found 0"):
        search_of(study)
    study.set_user_attr("recipe", recorded)
    architecture = recipe.structural.seeds[0]
    study.set_user_attr("candidate", {"study": "tiny/structural", "trial": 0, "architecture": architecture})
    with pytest.raises(UserError, match="'tiny/structural': a copy; expected a name such as tiny/modular/C0"):
        search_of(study)
    with pytest.raises(UserError, match="'plain': not made by run_study; it has no recipe"):
        search_of(optuna.create_study(study_name="plain", storage=storage))


def test_the_message_about_a_part_that_is_not_registered_names_it(url: str, recipe: Recipe) -> None:
    study = open_study(open_storage(url), StructuralSearch(recipe))
    study.set_user_attr("transferred", [{"architecture": "64x48 ResNet18 OwnFPN(P2-P4,c=16) RPN 2FC", "source": "x"}])
    with pytest.raises(UserError, match=r"study 'tiny/structural': .*OwnFPN"):
        search_of(study)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database, but long enough to be looked at" * 100, encoding="utf-8")
    with pytest.raises(UserError, match="file is not a database"):
        open_storage(f"sqlite:///{tmp_path}/text.db")


def test_loading_an_absent_study_makes_no_database_and_lists_the_studies(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(UserError, match="no such database file"):
        load_study(f"sqlite:///{tmp_path}/absent.db", "tiny/structural")
    assert not (tmp_path / "absent.db").exists()
    url = f"sqlite:///{tmp_path}/study.db"
    open_study(open_storage(url), StructuralSearch(recipe))
    with pytest.raises(UserError, match="the database has tiny/structural"):
        load_study(url, "tiny/structurel")
