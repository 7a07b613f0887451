"""Search: what one study searches; each stage has a type of its own."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import optuna

from smnas_optuna.detector.flops import backbone_costs
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.backbone import Backbone
from smnas_optuna.parts.backbones.searched import BackboneCode
from smnas_optuna.recipe.recipe import Modular, Recipe, SamplerName, StageName, Structural, Transfer
from smnas_optuna.training.job import AutomaticWeights, PretrainedWeights


class Space(Protocol):
    """A search space: what trials may choose, and how many choices there are."""

    def suggest(self, trial: optuna.trial.BaseTrial) -> Architecture:
        """Let a trial choose an architecture, define-by-run."""

    def params(self, architecture: Architecture) -> dict[str, Any]:
        """Return the parameters with which :meth:`suggest` gives ``architecture``."""

    @property
    def size(self) -> int:
        """Number of architectures."""


class Search(Protocol):
    """What one study searches, whichever stage it belongs to.

    Only the types that implement it know their stage: ``StructuralSearch``, ``ModularSearch``, ``TransferSearch``, and
    ``FinalSearch`` for what follows stage one.
    A command chooses one by the stage that the user names, and :func:`~smnas_optuna.search.studies.search_of` by what a
    study records. Everything else asks for what it needs:

    - The study's owner, ``search/studies.py``, creates the study ``study_name`` with ``settings.objectives``, lets the
      search ``record`` itself on it, enqueues the ``starts``, and gives the sampler ``space`` and ``order``. It resumes
      a study only if there are no ``differing_keys``.
    - A worker looks for the weights of all ``backbones`` before its first trial, and trains what ``space`` suggests,
      with ``settings`` and ``pretrained_weights``, until ``trials`` are evaluated.
    - Who reports compares with ``references`` and ``baseline``, and shows ``title`` and ``origins``.
    - A dry run says ``overview`` and ``goal``.
    """

    @property
    def recipe(self) -> Recipe:
        """The whole of which this is a part."""

    @property
    def stage(self) -> StageName:
        """The stage's name, which is that of its section in the recipe."""

    @property
    def path(self) -> str:
        """Name of this search within the recipe, such as ``structural``, ``modular/C0``, ``transfer``."""

    @property
    def study_name(self) -> str:
        """The study's name in its database: the recipe's name and the path."""

    @property
    def settings(self) -> Structural | Modular | Transfer:
        """The recipe's section for the stage."""

    @property
    def trials(self) -> int:
        """How many architectures are to be evaluated."""

    @property
    def sampler(self) -> SamplerName:
        """Which sampler proposes."""

    @property
    def space(self) -> Space:
        """What trials choose from."""

    @property
    def order(self) -> Callable[[Architecture], Any]:
        """``architecture -> (group, vector)``: the partial order of the space."""

    @property
    def starts(self) -> tuple[Architecture, ...]:
        """Architectures to evaluate first."""

    @property
    def references(self) -> tuple[Architecture, ...]:
        """Architectures by which the hypervolume is measured."""

    @property
    def reference_noun(self) -> str:
        """What one of the references is called, such as ``starting detector``."""

    @property
    def baseline(self) -> Architecture | None:
        """The architecture that the others have to beat; None without one."""

    @property
    def origins(self) -> Mapping[Architecture, str]:
        """Of a search in which nothing is proposed, all architectures with where they were found; otherwise empty.

        Such a place is ``coco/modular/C0 trial 12``, ``E2``, or ``baseline``.
        """

    def pretrained_weights(self, backbone: Backbone) -> PretrainedWeights | None:
        """Return the weights that the recipe requires for a backbone; None if it requires none."""

    @property
    def backbones(self) -> tuple[Backbone, ...]:
        """All backbones that trials may have, as far as they are known before."""

    def record(self, study: optuna.Study) -> None:
        """Record on a study what, beside the recipe, defines this search; again if the search has grown.

        Raises:
            UserError: Another run has made it a different search meanwhile.
        """

    def differing_keys(self, recorded: Mapping[str, Any]) -> list[str]:
        """Return the recipe's keys in which a study differs, so that its trials mean something else.

        Args:
            recorded: The study's user attributes, among them ``recipe``.
        """

    @property
    def title(self) -> str:
        """The study's name for messages; in stage two followed by the trial of stage one that it refines."""

    @property
    def overview(self) -> str:
        """What a dry run says of the stage's studies and the size of their spaces."""

    def goal(self, n_trials: int | None, sampler: str | None) -> str:
        """Say what a run would evaluate.

        Args:
            n_trials: Instead of the recipe's number.
            sampler: Instead of the recipe's.
        """


@dataclass(frozen=True)
class RecipeSearch(ABC):
    """What all types of searches have in common.

    Args:
        recipe: The whole of which this is a part.
    """

    recipe: Recipe

    @property
    @abstractmethod
    def path(self) -> str:
        """Name of this search within the recipe."""

    @property
    def study_name(self) -> str:
        """The study's name in its database."""
        return f"{self.recipe.name}/{self.path}"

    @property
    def title(self) -> str:
        """The study's name."""
        return self.study_name


def required_weights(search: Search) -> tuple[PretrainedWeights, ...]:
    """Return all weights that the recipe requires for backbones of a search."""
    return tuple(filter(None, map(search.pretrained_weights, search.backbones)))


def automatic_weights(search: Search, folder: Path | None) -> AutomaticWeights | None:
    """Return where detectors of a search look for weights that are not required; None if they look for none.

    Args:
        search: The search.
        folder: The user's folder of weights.
    """
    return AutomaticWeights(folder) if search.settings.training.weights == "auto" else None


def weights_in_recipe(search: Search, backbone: Backbone) -> PretrainedWeights | None:
    """Return the weights that a stage's ``training.weights`` names for a backbone; a searched one has none."""
    weights = search.settings.training.weights
    checkpoint = backbone.imagenet_weights if weights == "imagenet" else None
    if isinstance(weights, dict) and backbone.choice in weights:
        checkpoint = backbone.checkpoint_of(weights[backbone.choice])
    if checkpoint is None:
        return None
    return PretrainedWeights(backbone, checkpoint, f"{search.stage}.training.weights")


def known_objectives(objectives: Sequence[str]) -> dict[int, Callable[[Architecture], float]]:
    """For each objective that is known before a detector is built, by its index, return its value for an architecture.

    Args:
        objectives: Names of a study's objectives, such as ``backbone_flops``.
    """
    return {
        index: partial(_known_cost, name)
        for index, name in enumerate(objectives)
        if name in ("backbone_flops", "backbone_params")
    }


def _known_cost(name: str, architecture: Architecture) -> float:
    return known_costs(architecture)[name]


def known_costs(architecture: Architecture) -> dict[str, int]:
    """Return what the backbone of a detector costs, by its metric's name; nothing where that is no code.

    The backbone ends at the last level that the detector uses.
    """
    if not isinstance(architecture.backbone, BackboneCode):
        return {}
    stages = architecture.backbone_levels[-1]
    costs = backbone_costs(architecture.backbone, architecture.input_size, stages=stages)
    return {"backbone_flops": costs.flops, "backbone_params": costs.params}
