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
_NAME: Final = re.compile(rf"({REPEATS}|{ENDS})(\d+)(?:-\d+)?")


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
        kind, _ = parsed_name(self.name)
        return kind == ENDS

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


def parsed_name(name: str) -> tuple[str, int]:
    """Return what a name such as ``T7-2`` begins with, and the number of its seed or trial; raises ValueError."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} names nothing that follows a search")
    return match[1], int(match[2])


def final_names(storage: BaseStorage, recipe: str) -> list[str]:
    """Return the names of what follows a recipe's stage one, such as ``seed1``, sorted."""
    prefix = f"{recipe}/{FOLDER}/"
    names = [each.removeprefix(prefix) for each in optuna.get_all_study_names(storage) if each.startswith(prefix)]
    return sorted(filter(_NAME.fullmatch, names))


def load_final(storage: BaseStorage, recipe: str, name: str) -> optuna.Study:
    """Load a study that follows a recipe's stage one, by a name of :func:`final_names`."""
    return optuna.load_study(study_name=f"{recipe}/{FOLDER}/{name}", storage=storage)


def recorded_finals(storage: BaseStorage, recipe: Recipe) -> list[FinalSearch]:
    """Return what the studies that follow a recipe's stage one train, in the order of their names."""
    studies = [load_final(storage, recipe.name, name) for name in final_names(storage, recipe.name)]
    return [FinalSearch.of_study(recipe, study) for study in studies if RECORDED in study.user_attrs]
