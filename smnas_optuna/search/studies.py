"""Studies of searches: created or resumed, and read back as what they search."""

import secrets
import warnings
from importlib.metadata import version

import numpy as np
import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from pydantic import ValidationError
from sqlalchemy.engine import make_url

from smnas_optuna.errors import UserError
from smnas_optuna.recipe.recipe import Recipe
from smnas_optuna.recipe.recipe_file import first_mistake
from smnas_optuna.samplers import create_sampler
from smnas_optuna.search import final, modular, transfer
from smnas_optuna.search.final import FinalSearch, recorded_finals
from smnas_optuna.search.modular import ModularSearch, recorded_candidates
from smnas_optuna.search.search import Search, known_objectives
from smnas_optuna.search.structural import StructuralSearch
from smnas_optuna.search.transfer import TransferSearch, recorded_transfer
from smnas_optuna.study.claim import ClaimLock
from smnas_optuna.study.storage import database_errors

# Whose versions a study keeps.
_PACKAGES = ("smnas_optuna", "optuna", "torch", "torchvision", "mmdet", "mmengine")

_MAXIMISED = ("map", "map_50", "map_75")
# Trials before the sampler's model takes over, or a quarter of a short search.
_STARTUP_TRIALS = 10


def open_study(
    storage: RDBStorage, search: Search, *, sampler: str | None = None, seed: int | None = None
) -> optuna.Study:
    """Create the study of a search with what it starts from enqueued, or resume it.

    Args:
        storage: Where.
        search: What to search.
        sampler: Instead of the recipe's.
        seed: For the sampler; with the same seed and the same study so far it goes on in the same way.

    Raises:
        UserError: A study of this name was made from a recipe in which trials mean something else, for another
            candidate, or not by this package; the text lists what differs.
    """
    # So that of several workers that begin at the same time one creates it.
    with ClaimLock(storage, search.study_name):
        study = _create_or_load(storage, search)
    chosen = sampler or search.sampler
    if seed is not None and chosen != "pop":
        # The same random numbers again would propose the same architectures again; pop's depend on the trial's number.
        trials = len(study.get_trials(deepcopy=False))
        seed = int(np.random.SeedSequence([seed, trials]).generate_state(1)[0])
    study.sampler = create_sampler(
        chosen,
        seed,
        search.space.suggest,
        search.order,
        known_objectives(search.settings.objectives),
        n_startup_trials=max(1, min(_STARTUP_TRIALS, search.trials // 4)),
        # Trials are begun with the ClaimLock held, see execution/loop.py.
        exclusive=True,
    )
    return study


def agree(storage: RDBStorage, search: FinalSearch) -> FinalSearch:
    """Record what follows a search, and return it as it is recorded now.

    Of several commands that run the same search the first decides how a detector is trained; the others add what they
    want trained as well.
    """
    with ClaimLock(storage, search.study_name):
        study = _created(storage, search)
        search.record(study)
    return FinalSearch.of_study(search.recipe, study)


def _created(storage: RDBStorage, search: Search) -> optuna.Study:
    directions = [
        StudyDirection.MAXIMIZE if objective in _MAXIMISED else StudyDirection.MINIMIZE
        for objective in search.settings.objectives
    ]
    refuse_other_search(storage, search)
    with database_errors(make_url(storage.url)):
        return optuna.create_study(
            storage=storage, study_name=search.study_name, directions=directions, load_if_exists=True
        )


def _create_or_load(storage: RDBStorage, search: Search) -> optuna.Study:
    study, settings = _created(storage, search), search.settings
    if "recipe" not in study.user_attrs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(settings.objectives))
        study.set_user_attr("versions", {package: version(package) for package in _PACKAGES})
    search.record(study)
    if "recipe" not in study.user_attrs:
        # Last: a study without it is taken for one whose maker did not get so far.
        study.set_user_attr("recipe", search.recipe.model_dump(mode="json"))
    if "id" not in study.user_attrs:
        # Names and numbers of trials come again in a new database; this does not.
        study.set_user_attr("id", secrets.token_hex(8))
    for architecture in search.starts:
        study.enqueue_trial(search.space.params(architecture), skip_if_exists=True)
    return study


def _type_of(study: optuna.Study) -> type[StructuralSearch | ModularSearch | TransferSearch | FinalSearch]:
    """Return the type of what a study searches, by what it records."""
    if final.RECORDED in study.user_attrs:
        return FinalSearch
    if modular.RECORDED in study.user_attrs:
        return ModularSearch
    return TransferSearch if transfer.RECORDED in study.user_attrs else StructuralSearch


def lineage_of(study: optuna.Study) -> str:
    """Say where a study has its architectures from; nothing for one that searches a whole space, or is no search.

    It needs no recipe that can be used here.
    """
    return _type_of(study).lineage_of(study)


def search_of(study: optuna.Study) -> Search:
    """Return what a study searches; importing what its recipe imports.

    Raises:
        UserError: It was not made by :func:`open_study`, or what it records cannot be used here, such as a recipe with
            a module that is not there or with another version's keys; the text says which.
    """
    attributes, where = study.user_attrs, f"study {study.study_name!r}"
    recorded = attributes.get("recipe")
    if recorded is None:
        raise UserError(f"{where}: not made by run_study; it has no recipe")
    try:
        return _type_of(study).of_study(Recipe.model_validate(recorded), study)
    except ValidationError as error:
        made, here = attributes.get("versions", {}).get("smnas_optuna"), version("smnas_optuna")
        made_with = f", made with smnas_optuna {made} where here is {here}," if made not in (None, here) else ""
        raise UserError(f"{where}: its recipe{made_with} cannot be used: {first_mistake(error, recorded)[1]}") from None
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def present_searches(storage: RDBStorage, recipe: Recipe) -> list[Search]:
    """Return the searches of a recipe that have studies, in the order of the stages."""
    searches: list[Search] = [
        StructuralSearch(recipe),
        *(ModularSearch(recipe, candidate) for candidate in recorded_candidates(storage, recipe)),
        recorded_transfer(storage, recipe),
        *recorded_finals(storage, recipe),
    ]
    names = set(optuna.get_all_study_names(storage))
    return [search for search in searches if search.study_name in names]


def refuse_other_search(storage: RDBStorage, search: Search) -> None:
    """Make sure that a study of the search's name, if there is one, is the search's; writes nothing.

    Raises:
        UserError: See :func:`open_study`.
    """
    name = search.study_name
    if name not in optuna.get_all_study_names(storage):
        return
    study_id = storage.get_study_id_from_name(name)
    attributes = storage.get_study_user_attrs(study_id)
    if "recipe" not in attributes:
        # Its maker may have been killed before it could record the recipe; then there is no trial either.
        if storage.get_n_trials(study_id) > 0:
            raise UserError(f"study {name!r}: not made by run_study; choose another name with --set name=")
        return
    different = search.differing_keys(attributes)
    if different:
        raise UserError(
            f"study {name!r}: made from a recipe that differs in {', '.join(different)}; give those their former "
            "values to resume it, or start another study with --set name="
        )
