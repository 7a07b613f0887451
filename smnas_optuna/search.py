"""Search: what one study searches, whichever stage it belongs to."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import optuna

from smnas_optuna.architecture import Architecture, BackboneCode
from smnas_optuna.detector.config import SINGLE_LEVEL
from smnas_optuna.detector.flops import backbone_costs
from smnas_optuna.recipe import Modular, Recipe, StageName, Structural
from smnas_optuna.search_space.modular import CandidateSpace
from smnas_optuna.search_space.structural import order


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
    """An architecture of stage one that stage two takes on.

    Args:
        number: k in ``C<k>``.
        study: Name of the study that it was found in.
        trial: Its number there.
        architecture: It.
    """

    number: int
    study: str
    trial: int
    architecture: Architecture

    def __str__(self) -> str:
        return f"C{self.number}"


@dataclass(frozen=True)
class Search:
    """What one study searches.

    Args:
        recipe: The whole of which this is a part.
        candidate: Whose backbone stage two searches; None for stage one.
    """

    recipe: Recipe
    candidate: Candidate | None = None

    @property
    def stage(self) -> StageName:
        """The stage's name."""
        return "structural" if self.candidate is None else "modular"

    @property
    def path(self) -> str:
        """What tells this search from the recipe's others: ``structural``, ``modular/C0``."""
        return self.stage if self.candidate is None else f"{self.stage}/{self.candidate}"

    @property
    def study_name(self) -> str:
        """The study's name in its database."""
        return f"{self.recipe.name}/{self.path}"

    @property
    def settings(self) -> Structural | Modular:
        """The recipe's section for the stage."""
        if self.candidate is None:
            return self.recipe.structural
        assert self.recipe.modular is not None
        return self.recipe.modular

    @property
    def space(self) -> Space:
        """What trials choose from."""
        return self.recipe.structural.space if self.candidate is None else self._candidate_space

    @property
    def order(self) -> Callable[[Architecture], Any]:
        """``architecture -> (group, vector)``: the partial order of the space."""
        return order if self.candidate is None else self._candidate_space.order

    @property
    def starts(self) -> tuple[Architecture, ...]:
        """Architectures to evaluate first: the recipe's seeds, or the candidate's own backbone and the paper's."""
        if self.candidate is None:
            return tuple(map(Architecture.parse, self.recipe.structural.seeds))
        return self.baseline, *self._candidate_space.published_starts

    @property
    def baseline(self) -> Architecture:
        """The candidate with its own backbone as a code: what stage two has to beat."""
        return self._candidate_space.baseline

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
    last = architecture.neck.last_input if architecture.neck else SINGLE_LEVEL
    costs = backbone_costs(architecture.backbone, architecture.input_size, stages=last)
    return {"backbone_flops": costs.flops, "backbone_params": costs.params}


def _known_cost(name: str, architecture: Architecture) -> float:
    return known_costs(architecture)[name]
