"""What the stage ``transfer`` trains: architectures of other studies or of the zoo, beside the recipe's baselines."""

from collections.abc import Sequence

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.detector.zoo import find_detector
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe import Recipe
from smnas_optuna.search.search import Search, Transferred
from smnas_optuna.search.studies import transferred_in
from smnas_optuna.study.study import find_study

_FORMS = "STUDY:TRIAL, STUDY:best, STUDY:front, or a zoo detector such as E2"


def transfer_search(storage: BaseStorage, recipe: Recipe, sources: Sequence[str]) -> Search:
    """Return the search that trains what its study lists already, the recipe's baselines, and what sources name.

    Args:
        storage: Where the sources' studies are, and the transfer's own.
        recipe: With a section ``transfer``.
        sources: ``STUDY:TRIAL``, ``STUDY:best`` (the most accurate), ``STUDY:front``, or the name of a published
            detector, such as ``E2``.

    Raises:
        UserError: There is no such study, trial or detector, nothing to train at all, or the recipe has pre-trained
            weights of a backbone that no detector has.
    """
    assert recipe.transfer is not None
    listed = transferred_in(storage, recipe)
    listed += [Transferred(Architecture.parse(text), Transferred.BASELINE) for text in recipe.transfer.baselines]
    for source in sources:
        listed += _resolve(storage, source)
    # The first one keeps its place and the word of where it is from.
    distinct = {each.architecture: each for each in reversed(listed)}
    transferred = tuple(distinct[architecture] for architecture in dict.fromkeys(each.architecture for each in listed))
    if not transferred:
        raise UserError(f"--stage transfer: nothing to train; expected --from with {_FORMS}, or transfer.baselines")
    backbones = dict.fromkeys(str(each.architecture.backbone) for each in transferred)
    for text in recipe.transfer.pretrained:
        if text not in backbones:
            raise UserError(f"transfer.pretrained.{text}: nothing has this backbone; expected {', '.join(backbones)}")
    return Search(recipe, transferred=transferred)


def _resolve(storage: BaseStorage, source: str) -> list[Transferred]:
    name, separator, which = source.rpartition(":")
    if not separator:
        return [Transferred(_published(source), source)]
    study = find_study(storage, name, f"--from {source}:")
    trials = _chosen(study, source, which)
    try:
        return [
            Transferred(Architecture.parse(trial.user_attrs["architecture"]), f"{name} trial {trial.number}")
            for trial in trials
        ]
    except ValueError as error:
        raise UserError(f"--from {source}: {error}; a part of one's own needs its module among imports") from None


def _published(name: str) -> Architecture:
    try:
        published = find_detector(name)
    except ValueError as error:
        raise UserError(f"--from {error}; or {_FORMS}") from None
    if published.architecture is None:
        raise UserError(f"--from {name}: has no architecture that can be trained here; expected {_FORMS}")
    return published.architecture


def _chosen(study: optuna.Study, source: str, which: str) -> list[FrozenTrial]:
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    complete = [trial for trial in complete if "architecture" in trial.user_attrs]
    if not complete:
        raise UserError(f"--from {source}: {study.study_name!r} has no finished trial")
    if which == "front":
        return sorted((trial for trial in study.best_trials if trial in complete), key=lambda trial: trial.number)
    if which == "best":
        return [_most_accurate(study)]
    chosen = [trial for trial in complete if str(trial.number) == which]
    if not chosen:
        numbers = ", ".join(str(trial.number) for trial in complete)
        raise UserError(f"--from {source}: expected best, front or a finished trial of {numbers}")
    return chosen


def _most_accurate(study: optuna.Study) -> FrozenTrial:
    """Return the trial of the front that is best in the first objective that is maximised; without one, in the first.

    The front has each accuracy at its least cost.
    """
    directions = study.directions
    index = directions.index(StudyDirection.MAXIMIZE) if StudyDirection.MAXIMIZE in directions else 0
    sign = 1 if directions[index] == StudyDirection.MAXIMIZE else -1
    return max(study.best_trials, key=lambda trial: (sign * trial.values[index], -trial.number))
