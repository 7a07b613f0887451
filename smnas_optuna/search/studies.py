"""Studies of searches: created or resumed, and read back as what they search."""

import re
import secrets
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from pydantic import ValidationError
from sqlalchemy.engine import make_url

from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe import Recipe
from smnas_optuna.recipe.recipe_file import first_mistake
from smnas_optuna.samplers import create_sampler
from smnas_optuna.search.search import Candidate, Search, Transferred
from smnas_optuna.study.claim import ClaimLock
from smnas_optuna.study.storage import database_errors

# Whose versions a study keeps.
_PACKAGES = ("smnas_optuna", "optuna", "torch", "torchvision", "mmdet", "mmengine")

_PRETRAINED = "transfer.pretrained."
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
        search.known_objectives,
        n_startup_trials=max(1, min(_STARTUP_TRIALS, search.trials // 4)),
        # Trials are begun with the ClaimLock held, see execution/loop.py.
        exclusive=True,
    )
    return study


def _create_or_load(storage: RDBStorage, search: Search) -> optuna.Study:
    settings, name = search.settings, search.study_name
    directions = [
        StudyDirection.MAXIMIZE if objective in _MAXIMISED else StudyDirection.MINIMIZE
        for objective in settings.objectives
    ]
    refuse_other_search(storage, search)
    with database_errors(make_url(storage.url)):
        study = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
    if "recipe" not in study.user_attrs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(settings.objectives))
        if search.candidate is not None:
            study.set_user_attr("candidate", _record_of(search))
        study.set_user_attr("versions", {package: version(package) for package in _PACKAGES})
        # Last: a study without it is taken for one whose maker did not get so far.
        study.set_user_attr("recipe", search.recipe.model_dump(mode="json"))
    if "id" not in study.user_attrs:
        # Names and numbers of trials come again in a new database; this does not.
        study.set_user_attr("id", secrets.token_hex(8))
    _list_transferred(study, search)
    for architecture in search.starts:
        study.enqueue_trial(search.space.params(architecture), skip_if_exists=True)
    return study


def _list_transferred(study: optuna.Study, search: Search) -> None:
    """Record what a study of the stage ``transfer`` trains; what it has recorded keeps its place in the list."""
    if search.transferred is None:
        return
    recorded, wanted = transferred_of(study), list(search.transferred)
    if wanted[: len(recorded)] != recorded:
        raise UserError(f"study {study.study_name!r}: another run has added architectures meanwhile; run this again")
    if wanted != recorded:
        study.set_user_attr("recipe", search.recipe.model_dump(mode="json"))
        entries = [{"architecture": str(each.architecture), "source": each.source} for each in wanted]
        study.set_user_attr("transferred", entries)


def transferred_of(study: optuna.Study) -> list[Transferred]:
    """Return what a study of the stage ``transfer`` trains, in the order of its list."""
    return _transferred(study.user_attrs)


def _transferred(attributes: Mapping[str, Any]) -> list[Transferred]:
    return [
        Transferred(Architecture.parse(entry["architecture"]), entry["source"])
        for entry in attributes.get("transferred", ())
    ]


def transferred_in(storage: BaseStorage, recipe: Recipe) -> list[Transferred]:
    """Return what a recipe's study of the stage ``transfer`` trains; nothing where there is no such study."""
    name = Search(recipe, transferred=()).study_name
    if name not in optuna.get_all_study_names(storage):
        return []
    return transferred_of(optuna.load_study(study_name=name, storage=storage))


def candidates_of(storage: RDBStorage, recipe: Recipe) -> list[Candidate]:
    """Return the candidates that have studies of stage two, by their numbers."""
    found = []
    for study in storage.get_all_studies():
        recorded = study.user_attrs.get("candidate")
        if recorded and study.study_name.startswith(f"{recipe.name}/modular/"):
            found.append(_candidate(study.study_name, recorded))
    return sorted((candidate for candidate in found if candidate), key=lambda candidate: candidate.number)


def _candidate(study_name: str, recorded: dict[str, Any]) -> Candidate | None:
    """Return the candidate of a study of stage two; None where the name is not one's, as a copy's."""
    number = re.fullmatch(r"[^/]+/modular/C(\d+)", study_name)
    if number is None:
        return None
    architecture = Architecture.parse(recorded["architecture"])
    return Candidate(int(number[1]), recorded["study"], recorded["trial"], architecture)


def _record_of(search: Search) -> dict[str, Any]:
    """Return what a study of stage two keeps of its parentage."""
    candidate = search.candidate
    assert candidate is not None
    return {
        "study": candidate.study,
        "trial": candidate.trial,
        "architecture": str(candidate.architecture),
        "baseline": str(search.baseline),
    }


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
        recipe = Recipe.model_validate(recorded)
        transferred = tuple(transferred_of(study)) if "transferred" in attributes else None
        parent = attributes.get("candidate")
        candidate = _candidate(study.study_name, parent) if parent else None
    except ValidationError as error:
        made, here = attributes.get("versions", {}).get("smnas_optuna"), version("smnas_optuna")
        made_with = f", made with smnas_optuna {made} where here is {here}," if made not in (None, here) else ""
        raise UserError(f"{where}: its recipe{made_with} cannot be used: {first_mistake(error, recorded)[1]}") from None
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if parent and candidate is None:
        raise UserError(f"{where}: a copy; expected a name such as {recipe.name}/modular/C0")
    return Search(recipe, candidate, transferred)


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
    recorded = attributes.get("recipe")
    if recorded is None:
        # Its maker may have been killed before it could record the recipe; then there is no trial either.
        if storage.get_n_trials(study_id) > 0:
            raise UserError(f"study {name!r}: not made by run_study; choose another name with --set name=")
        return
    listed = {str(each.architecture.backbone) for each in _transferred(attributes)}
    different = [
        key
        for key in search.recipe.differing_keys(recorded, search.stage)
        # Of a backbone that comes in only now its weights may come in, too.
        if not key.startswith(_PRETRAINED) or key.removeprefix(_PRETRAINED) in listed
    ]
    if different:
        raise UserError(
            f"study {name!r}: made from a recipe that differs in {', '.join(different)}; give those their former "
            "values to resume it, or start another study with --set name="
        )
