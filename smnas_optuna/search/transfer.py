"""The stage ``transfer``: architectures of other studies or of the zoo, trained beside the recipe's baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.detector.zoo import find_detector
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.backbone import Backbone
from smnas_optuna.recipe.recipe import Recipe, StageName, Transfer
from smnas_optuna.search.listed import Listed, ListedSearch, list_to_record, recorded_list, text_of_list
from smnas_optuna.search.search import weights_in_recipe
from smnas_optuna.study.study import find_study
from smnas_optuna.training.job import PretrainedWeights

_FORMS = "STUDY:TRIAL, STUDY:best, STUDY:front, or a zoo detector such as E2"
_PRETRAINED = "transfer.pretrained."
# The user attribute of a study of this stage that lists what it trains.
RECORDED = "transferred"


@dataclass(frozen=True)
class TransferSearch(ListedSearch):
    """What the study of the stage ``transfer`` trains; see :class:`~smnas_optuna.search.search.Search`.

    The recipe has a section ``transfer``.
    """

    stage: ClassVar[StageName] = "transfer"

    @classmethod
    def of_study(cls, recipe: Recipe, study: optuna.Study) -> "TransferSearch":
        """Return what a study of this stage trains; raises ValueError where parts of that are not known here."""
        return cls(recipe, _recorded_in(study.user_attrs))

    @staticmethod
    def lineage_of(study: optuna.Study) -> str:
        """Say what a study trains, and where each is from."""
        return text_of_list(study.user_attrs[RECORDED])

    @property
    def path(self) -> str:
        """Name of this search within the recipe."""
        return self.stage

    @property
    def settings(self) -> Transfer:
        """The recipe's section for this stage."""
        assert self.recipe.transfer is not None
        return self.recipe.transfer

    def pretrained_weights(self, backbone: Backbone) -> PretrainedWeights | None:
        """Return the weights under ``pretrained`` in the recipe, or else those of ``training.weights``."""
        checkpoint = self.settings.pretrained.get(str(backbone))
        if checkpoint is not None:
            return PretrainedWeights(backbone, backbone.checkpoint_of(checkpoint), f"{self.stage}.pretrained")
        return weights_in_recipe(self, backbone)

    def record(self, study: optuna.Study) -> None:
        """Record what the study trains; what it has recorded keeps its place in the list.

        Raises:
            UserError: Another run has added architectures meanwhile.
        """
        recorded, wanted = _recorded_in(study.user_attrs), self.listed
        if wanted[: len(recorded)] != recorded:
            raise UserError(
                f"study {study.study_name!r}: another run has added architectures meanwhile; run this again"
            )
        if wanted != recorded:
            # First: of a backbone that comes in, its weights may have come in, too.
            study.set_user_attr("recipe", self.recipe.model_dump(mode="json"))
            study.set_user_attr(RECORDED, list_to_record(wanted))

    def differing_keys(self, recorded: Mapping[str, Any]) -> list[str]:
        """Return the recipe's keys in which a study differs."""
        backbones = {str(each.architecture.backbone) for each in _recorded_in(recorded)}
        return [
            key
            for key in self.recipe.differing_keys(recorded["recipe"], self.stage)
            # Of a backbone that comes in only now its weights may come in, too.
            if not key.startswith(_PRETRAINED) or key.removeprefix(_PRETRAINED) in backbones
        ]


def recorded_transfer(storage: BaseStorage, recipe: Recipe) -> TransferSearch:
    """Return what a recipe's study of this stage trains; nothing where there is no such study."""
    empty = TransferSearch(recipe, ())
    if empty.study_name not in optuna.get_all_study_names(storage):
        return empty
    return TransferSearch.of_study(recipe, optuna.load_study(study_name=empty.study_name, storage=storage))


def _recorded_in(attributes: Mapping[str, Any]) -> tuple[Listed, ...]:
    return recorded_list(attributes.get(RECORDED, ()))


def transfer_search(storage: BaseStorage, recipe: Recipe, sources: Sequence[str]) -> TransferSearch:
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
    wanted = list(recorded_transfer(storage, recipe).listed)
    wanted += [Listed(Architecture.parse(text), Listed.BASELINE) for text in recipe.transfer.baselines]
    for source in sources:
        wanted += _resolve(storage, source)
    # The first one keeps its place and the word of where it is from.
    distinct = {each.architecture: each for each in reversed(wanted)}
    transferred = tuple(distinct[architecture] for architecture in dict.fromkeys(each.architecture for each in wanted))
    if not transferred:
        raise UserError(f"--stage transfer: nothing to train; expected --from with {_FORMS}, or transfer.baselines")
    backbones = dict.fromkeys(str(each.architecture.backbone) for each in transferred)
    for text in recipe.transfer.pretrained:
        if text not in backbones:
            raise UserError(f"transfer.pretrained.{text}: nothing has this backbone; expected {', '.join(backbones)}")
    return TransferSearch(recipe, transferred)


def _resolve(storage: BaseStorage, source: str) -> list[Listed]:
    name, separator, which = source.rpartition(":")
    if not separator:
        return [Listed(_published(source), source)]
    study = find_study(storage, name, f"--from {source}:")
    trials = _chosen(study, source, which)
    try:
        return [
            Listed(Architecture.parse(trial.user_attrs["architecture"]), f"{name} trial {trial.number}")
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
