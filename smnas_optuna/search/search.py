"""Search: what one study searches, whichever stage it belongs to."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, Protocol

import optuna

from smnas_optuna.detector.flops import backbone_costs
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.backbone import Backbone
from smnas_optuna.parts.backbones.searched import BackboneCode
from smnas_optuna.recipe.recipe import Modular, Recipe, SamplerName, StageName, Structural, Transfer
from smnas_optuna.search_space import listed, structural
from smnas_optuna.search_space.listed import ListedSpace
from smnas_optuna.search_space.modular import CandidateSpace
from smnas_optuna.training.job import Pretrained


class Space(Protocol):
    """A search space: what trials may choose, and how many choices there are."""

    def suggest(self, trial: optuna.trial.BaseTrial) -> Architecture:
        """Let a trial choose an architecture, define-by-run."""

    def params(self, architecture: Architecture) -> dict[str, Any]:
        """Return the parameters with which :meth:`suggest` gives ``architecture``."""

    @property
    def size(self) -> int:
        """Number of architectures."""


@dataclass(frozen=True)
class Candidate:
    """An architecture of stage one whose backbone stage two refines.

    Args:
        number: k in ``C<k>``.
        study: Name of the study that it was found in.
        trial: Its number there.
        architecture: The candidate's architecture.
    """

    number: int
    study: str
    trial: int
    architecture: Architecture

    def __str__(self) -> str:
        return f"C{self.number}"


@dataclass(frozen=True)
class Transferred:
    """An architecture that is trained on the data set of another recipe than it was found with.

    Args:
        architecture: The architecture, with which nothing of its former training comes along.
        source: Where it is from: ``coco/modular/C0 trial 12``, ``E2``, or ``BASELINE``.
    """

    BASELINE: ClassVar[str] = "baseline"

    architecture: Architecture
    source: str


@dataclass(frozen=True)
class Search:
    """What one study searches.

    Args:
        recipe: The whole of which this is a part.
        candidate: Whose backbone stage two searches; None for another stage.
        transferred: What the stage ``transfer`` trains; None for another stage.
    """

    recipe: Recipe
    candidate: Candidate | None = None
    transferred: tuple[Transferred, ...] | None = None

    @property
    def stage(self) -> StageName:
        """The stage's name."""
        if self.transferred is not None:
            return "transfer"
        return "structural" if self.candidate is None else "modular"

    @property
    def path(self) -> str:
        """What tells this search from the recipe's others, such as ``structural``, ``modular/C0``, ``transfer``."""
        return self.stage if self.candidate is None else f"{self.stage}/{self.candidate}"

    @property
    def study_name(self) -> str:
        """The study's name in its database."""
        return f"{self.recipe.name}/{self.path}"

    @property
    def settings(self) -> Structural | Modular | Transfer:
        """The recipe's section for the stage."""
        settings: Structural | Modular | Transfer | None = getattr(self.recipe, self.stage)
        assert settings is not None
        return settings

    @property
    def trials(self) -> int:
        """How many architectures are to be evaluated."""
        return len(self.starts) if isinstance(self.settings, Transfer) else self.settings.trials

    @property
    def sampler(self) -> SamplerName:
        """Which sampler proposes; of a list everything is enqueued, so it does not matter there."""
        return "random" if isinstance(self.settings, Transfer) else self.settings.sampler

    @property
    def space(self) -> Space:
        """What trials choose from."""
        if self.transferred is not None:
            return ListedSpace(self.starts)
        return self.recipe.structural.space if self.candidate is None else self._candidate_space

    @property
    def order(self) -> Callable[[Architecture], Any]:
        """``architecture -> (group, vector)``: the partial order of the space."""
        if self.transferred is not None:
            return listed.order
        return structural.order if self.candidate is None else self._candidate_space.order

    @property
    def starts(self) -> tuple[Architecture, ...]:
        """Architectures to evaluate first.

        They are the recipe's seeds, or the candidate's own backbone and the paper's, or all that is transferred.
        """
        if self.transferred is not None:
            return tuple(each.architecture for each in self.transferred)
        if self.candidate is None:
            return tuple(map(Architecture.parse, self.recipe.structural.seeds))
        return self.baseline, *self._candidate_space.published_starts

    @property
    def references(self) -> tuple[Architecture, ...]:
        """Architectures that what is found has to beat: those to start from, and in a transfer the baselines."""
        if self.transferred is None:
            return self.starts
        return tuple(each.architecture for each in self.transferred if each.source == Transferred.BASELINE)

    @property
    def baseline(self) -> Architecture:
        """The candidate with its own backbone as a code, which stage two has to beat."""
        return self._candidate_space.baseline

    def weights(self, backbone: Backbone) -> str | None:
        """Return where a backbone's pre-trained weights are, a URI or a file; None to train it from scratch."""
        found = self._pretrained(backbone)
        return found.weights if found else None

    def start(self, backbone: Backbone) -> str:
        """Say what a backbone is trained from: ``scratch``, ``imagenet`` or a file of weights."""
        weights = self.weights(backbone)
        return "scratch" if weights is None else "imagenet" if "://" in weights else weights

    @property
    def pretrained(self) -> tuple[Pretrained, ...]:
        """The weights that the backbones of this search begin with."""
        if self.candidate is not None:
            return ()
        if self.transferred is None:
            space = self.recipe.structural.space
            backbones: list[Backbone] = [space.backbone(name) for name in space.backbones]
        else:
            backbones = [each.architecture.backbone for each in self.transferred]
        found = map(self._pretrained, dict.fromkeys(backbones))
        return tuple(each for each in found if each is not None)

    def _pretrained(self, backbone: Backbone) -> Pretrained | None:
        if isinstance(self.settings, Transfer) and str(backbone) in self.settings.pretrained:
            return Pretrained(backbone, str(self.settings.pretrained[str(backbone)]), f"{self.stage}.pretrained")
        weights, published = self.settings.training.weights, backbone.imagenet_weights
        if published is None or weights == "none":
            return None
        found = str(weights[backbone.family]) if isinstance(weights, dict) else published
        return Pretrained(backbone, found, f"{self.stage}.training.weights")

    @property
    def known_objectives(self) -> dict[int, Callable[[Architecture], float]]:
        """For each objective that is known before a detector is built, by its index, its value for an architecture."""
        return {
            index: partial(_known_cost, name)
            for index, name in enumerate(self.settings.objectives)
            if name in ("backbone_flops", "backbone_params")
        }

    @cached_property
    def _candidate_space(self) -> CandidateSpace:
        assert self.candidate is not None
        assert self.recipe.modular is not None
        return self.recipe.modular.space.for_candidate(self.candidate.architecture)


def known_costs(architecture: Architecture) -> dict[str, int]:
    """Return what the backbone of a detector costs, by its metric's name; nothing where that is no code.

    The backbone ends at the last level that the detector uses.
    """
    if not isinstance(architecture.backbone, BackboneCode):
        return {}
    stages = architecture.backbone_levels[-1]
    costs = backbone_costs(architecture.backbone, architecture.input_size, stages=stages)
    return {"backbone_flops": costs.flops, "backbone_params": costs.params}


def _known_cost(name: str, architecture: Architecture) -> float:
    return known_costs(architecture)[name]
