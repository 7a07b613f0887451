"""A search that proposes nothing: it trains a list of architectures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.backbone import Backbone
from smnas_optuna.recipe.recipe import SamplerName
from smnas_optuna.search.search import RecipeSearch
from smnas_optuna.search_space import listed
from smnas_optuna.search_space.listed import ListedSpace


@dataclass(frozen=True)
class Listed:
    """An architecture to train, whose weights of former trainings are not used.

    Args:
        architecture: The architecture.
        source: Where it is from: ``coco/modular/C0 trial 12``, ``E2``, or ``BASELINE``.
    """

    BASELINE: ClassVar[str] = "baseline"

    architecture: Architecture
    source: str


@dataclass(frozen=True)
class ListedSearch(RecipeSearch):
    """What searches that train a list have in common; see :class:`~smnas_optuna.search.search.Search`.

    Args:
        recipe: See :class:`~smnas_optuna.search.search.RecipeSearch`.
        listed: All that is trained, each once.
    """

    listed: tuple[Listed, ...]

    # All of the list is enqueued, so it does not matter which one proposes.
    sampler: ClassVar[SamplerName] = "random"
    reference_noun: ClassVar[str] = "baseline"

    @property
    def overview(self) -> str:
        """The study, and the length of its list."""
        return f"study {self.study_name}: {self.trials} detectors"

    def goal(self, n_trials: int | None, sampler: str | None) -> str:
        """Say what a run would evaluate: everything, whatever the arguments."""
        return "a run would evaluate all of them"

    @property
    def trials(self) -> int:
        """How many architectures are listed."""
        return len(self.listed)

    @property
    def space(self) -> ListedSpace:
        """The list."""
        return ListedSpace(self.starts)

    @property
    def order(self) -> Callable[[Architecture], Any]:
        """``architecture -> (group, vector)`` with which nothing precedes another."""
        return listed.order

    @property
    def starts(self) -> tuple[Architecture, ...]:
        """Everything on the list."""
        return tuple(each.architecture for each in self.listed)

    @property
    def references(self) -> tuple[Architecture, ...]:
        """The baselines on the list."""
        return tuple(each.architecture for each in self.listed if each.source == Listed.BASELINE)

    @property
    def baseline(self) -> Architecture | None:
        """The first baseline."""
        return next(iter(self.references), None)

    @property
    def origins(self) -> dict[Architecture, str]:
        """Where each architecture on the list was found."""
        return {each.architecture: each.source for each in self.listed}

    @property
    def backbones(self) -> tuple[Backbone, ...]:
        """All backbones on the list."""
        return tuple(dict.fromkeys(each.architecture.backbone for each in self.listed))


def list_to_record(listed: Sequence[Listed]) -> list[dict[str, str]]:
    """Return a list as a study records it in its user attributes."""
    return [{"architecture": str(each.architecture), "source": each.source} for each in listed]


def recorded_list(recorded: Sequence[Mapping[str, str]]) -> tuple[Listed, ...]:
    """Return the list that a study has recorded; raises ValueError where parts of it are not known here."""
    return tuple(Listed(Architecture.parse(entry["architecture"]), entry["source"]) for entry in recorded)


def text_of_list(recorded: Sequence[Mapping[str, str]]) -> str:
    """Say what a study trains, and where each is from."""
    return "Trained here: " + "; ".join(f"{each['architecture']} ({each['source']})" for each in recorded)
