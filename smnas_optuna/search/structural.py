"""Stage one: which modules and which resolution a detector has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import optuna

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.backbone import Backbone
from smnas_optuna.recipe.recipe import Recipe, SamplerName, StageName, Structural
from smnas_optuna.search.search import RecipeSearch, weights_in_recipe
from smnas_optuna.search_space import structural
from smnas_optuna.search_space.structural import StructuralSpace
from smnas_optuna.training.job import PretrainedWeights


@dataclass(frozen=True)
class StructuralSearch(RecipeSearch):
    """What the study of stage one searches; see :class:`~smnas_optuna.search.search.Search`."""

    stage: ClassVar[StageName] = "structural"
    reference_noun: ClassVar[str] = "starting detector"
    baseline: ClassVar[None] = None
    # Everything is proposed.
    origins: ClassVar[Mapping[Architecture, str]] = {}

    @classmethod
    def of_study(cls, recipe: Recipe, _: optuna.Study) -> "StructuralSearch":
        """Return what a study of stage one with this recipe searches."""
        return cls(recipe)

    @staticmethod
    def lineage_of(_: optuna.Study) -> str:
        """Say nothing: the architectures are those of the whole space."""
        return ""

    @property
    def path(self) -> str:
        """Name of this search within the recipe."""
        return self.stage

    @property
    def settings(self) -> Structural:
        """The recipe's section for stage one."""
        return self.recipe.structural

    @property
    def trials(self) -> int:
        """How many architectures are to be evaluated."""
        return self.settings.trials

    @property
    def sampler(self) -> SamplerName:
        """Which sampler proposes."""
        return self.settings.sampler

    @property
    def space(self) -> StructuralSpace:
        """What trials choose from."""
        return self.settings.space

    @property
    def order(self) -> Callable[[Architecture], Any]:
        """``architecture -> (group, vector)``: the partial order of the space."""
        return structural.order

    @property
    def starts(self) -> tuple[Architecture, ...]:
        """The recipe's seeds."""
        return tuple(map(Architecture.parse, self.settings.seeds))

    @property
    def references(self) -> tuple[Architecture, ...]:
        """The recipe's seeds."""
        return self.starts

    def pretrained_weights(self, backbone: Backbone) -> PretrainedWeights | None:
        """Return the weights that the recipe names for a backbone; None to train it from scratch."""
        return weights_in_recipe(self, backbone)

    @property
    def backbones(self) -> tuple[Backbone, ...]:
        """All backbones of the space."""
        return self.space.all_backbones

    def record(self, study: optuna.Study) -> None:
        """Record nothing: the recipe says everything."""

    def differing_keys(self, recorded: Mapping[str, Any]) -> list[str]:
        """Return the recipe's keys in which a study differs."""
        return self.recipe.differing_keys(recorded["recipe"], self.stage)

    @property
    def overview(self) -> str:
        """The study, and the size of its space."""
        return f"study {self.study_name}: {self.space.size:,} architectures"

    def goal(self, n_trials: int | None, sampler: str | None) -> str:
        """Say what a run would evaluate."""
        return (
            f"a run would evaluate {n_trials or self.trials} of them, {len(self.settings.seeds)} given seeds first "
            f"and the others proposed by {sampler or self.sampler}"
        )
