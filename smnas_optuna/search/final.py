"""What follows a search: detectors that it recommends, trained with other seeds, and one of them trained to the end."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import optuna
from optuna.storages import BaseStorage

from smnas_optuna.parts.backbones.backbone import Backbone
from smnas_optuna.recipe.recipe import Recipe, StageName, Structural
from smnas_optuna.search.listed import ListedSearch, list_to_record, recorded_list, text_of_list
from smnas_optuna.search.search import weights_in_recipe
from smnas_optuna.training.job import PretrainedWeights

# The user attribute of a study that follows a search.
RECORDED: Final = "final"
# What the names of such studies begin with; numbers follow, of the seed or of the trial that is trained to the end.
FOLDER: Final = "final"
REPEATS: Final = "seed"
ENDS: Final = "T"


@dataclass(frozen=True)
class FinalSearch(ListedSearch):
    """What a study that follows stage one trains; see :class:`~smnas_optuna.search.search.Search`.

    Everything that is not an argument is as in stage one.

    Args:
        recipe: The whole of which this is a part.
        listed: What is trained.
        name: Name among the studies that follow, such as ``seed1`` or ``T7``.
        epochs: Passes over the training images.
        seed: Seed of the training.
        all_images: Train on all training images, even if the recipe limits them.
        starts_from_trial: Start from the weights that stage one has trained, instead of those that it started from.
    """

    name: str
    epochs: int
    seed: int
    all_images: bool = False
    starts_from_trial: bool = False

    # Its detectors are trained as those of stage one.
    stage: ClassVar[StageName] = "structural"

    @classmethod
    def of_study(cls, recipe: Recipe, study: optuna.Study) -> "FinalSearch":
        """Return what a study trains; raises ValueError where parts of that are not known here."""
        recorded = dict(study.user_attrs[RECORDED])
        listed = recorded_list(recorded.pop("listed"))
        return cls(recipe, listed, study.study_name.rpartition("/")[2], **recorded)

    @staticmethod
    def lineage_of(study: optuna.Study) -> str:
        """Say what a study trains, and where each is from."""
        return text_of_list(study.user_attrs[RECORDED]["listed"])

    @property
    def path(self) -> str:
        """Name of this search within the recipe, such as ``final/seed1``."""
        return f"{FOLDER}/{self.name}"

    @property
    def settings(self) -> Structural:
        """Those of stage one, with the epochs and the seed of this training."""
        structural = self.recipe.structural
        former = structural.training
        changed: dict[str, Any] = {"epochs": self.epochs, "seed": self.seed}
        if self.is_to_the_end:
            changed["time_limit_minutes"] = None
            if self.recipe.final is not None:
                changed |= self.recipe.final.model_dump(include={"scale_jitter", "photometric"}, exclude_none=True)
        if self.starts_from_trial and former.lr is not None:
            # As if both trainings were one: the rate from which a single cosine would go on after the trial.
            done = former.epochs / (former.epochs + self.epochs)
            changed["lr"] = former.lr * (1 + math.cos(math.pi * done)) / 2
        return structural.model_copy(update={"training": former.model_copy(update=changed)})

    @property
    def is_to_the_end(self) -> bool:
        """Whether this is the training of the detector to deploy, instead of one with another seed."""
        return self.name.startswith(ENDS)

    def pretrained_weights(self, backbone: Backbone) -> PretrainedWeights | None:
        """Return the weights that the recipe requires; None for those of stage one's trial."""
        return None if self.starts_from_trial else weights_in_recipe(self, backbone)

    def record(self, study: optuna.Study) -> None:
        """Record what the study trains: what it has recorded stays, and what is new is added at the end of its list."""
        recorded = study.user_attrs.get(RECORDED) or {
            "listed": [],
            "epochs": self.epochs,
            "seed": self.seed,
            "all_images": self.all_images,
            "starts_from_trial": self.starts_from_trial,
        }
        added = [each for each in list_to_record(self.listed) if each not in recorded["listed"]]
        if added:
            study.set_user_attr(RECORDED, {**recorded, "listed": recorded["listed"] + added})

    def differing_keys(self, recorded: Mapping[str, Any]) -> list[str]:
        """Return the recipe's keys in which a study differs."""
        return self.recipe.differing_keys(recorded["recipe"], self.stage)


def recorded_finals(storage: BaseStorage, recipe: Recipe) -> list[FinalSearch]:
    """Return what the studies that follow a recipe's stage one train, in the order of their names."""
    name = re.compile(rf"{re.escape(recipe.name)}/{FOLDER}/(?:{REPEATS}|{ENDS})\d.*")
    studies = [
        optuna.load_study(study_name=each, storage=storage)
        for each in sorted(filter(name.fullmatch, optuna.get_all_study_names(storage)))
    ]
    return [FinalSearch.of_study(recipe, study) for study in studies if RECORDED in study.user_attrs]
