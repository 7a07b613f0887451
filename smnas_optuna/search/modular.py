"""Stage two: the backbone of one candidate of stage one, or the width of its head, and the channels of its neck."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import optuna
from optuna.storages import RDBStorage

from smnas_optuna.parts.architecture import Architecture, InputSize
from smnas_optuna.parts.backbones.backbone import Backbone
from smnas_optuna.parts.heads.retinanet import RetinaNetHead
from smnas_optuna.parts.necks.fpn import FPN
from smnas_optuna.recipe.recipe import Modular, Recipe, SamplerName, StageName
from smnas_optuna.search.search import RecipeSearch
from smnas_optuna.search_space.candidate import CandidateSpace
from smnas_optuna.search_space.widths import WidthSpace

_STUDY_NAME = re.compile(r"([^/]+)/modular/C(\d+)")
# The user attribute of a study of stage two that describes its candidate.
RECORDED = "candidate"


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
class ModularSearch(RecipeSearch):
    """What a study of stage two searches; see :class:`~smnas_optuna.search.search.Search`.

    Args:
        recipe: The whole of which this is a part; it has a stage two.
        candidate: Whose backbone is searched.
    """

    candidate: Candidate

    stage: ClassVar[StageName] = "modular"
    reference_noun: ClassVar[str] = "starting detector"
    # Everything is proposed.
    origins: ClassVar[Mapping[Architecture, str]] = {}

    @classmethod
    def of_study(cls, recipe: Recipe, study: optuna.Study) -> "ModularSearch":
        """Return what a study of stage two with this recipe searches.

        Raises:
            ValueError: It is a copy, whose name has no candidate, or parts of its candidate are not known here.
        """
        candidate = _candidate_of(study.study_name, study.user_attrs[RECORDED])
        if candidate is None:
            raise ValueError(f"a copy; expected a name such as {recipe.name}/modular/C0")
        return cls(recipe, candidate)

    @staticmethod
    def lineage_of(study: optuna.Study) -> str:
        """Say which trial of stage one a study refines."""
        parent = study.user_attrs[RECORDED]
        name = study.study_name.rpartition("/")[2]
        return f"{name} refines trial {parent['trial']} of {parent['study']}: {parent['architecture']}"

    @property
    def path(self) -> str:
        """Name of this search within the recipe, such as ``modular/C0``."""
        return f"{self.stage}/{self.candidate}"

    @property
    def title(self) -> str:
        """The study's name, with what it refines."""
        return f"{self.study_name} refines trial {self.candidate.trial}, {self.candidate.architecture}"

    @property
    def settings(self) -> Modular:
        """The recipe's section for stage two."""
        assert self.recipe.modular is not None
        return self.recipe.modular

    @property
    def trials(self) -> int:
        """How many architectures are to be evaluated."""
        return self.settings.trials

    @property
    def sampler(self) -> SamplerName:
        """Which sampler proposes."""
        return self.settings.sampler

    @cached_property
    def space(self) -> CandidateSpace | WidthSpace:
        """What trials choose from."""
        return self.settings.space.for_candidate(self.candidate.architecture)

    @property
    def order(self) -> Callable[[Architecture], Any]:
        """``architecture -> (group, vector)``: the partial order of the space."""
        return self.space.order

    @property
    def starts(self) -> tuple[Architecture, ...]:
        """The candidate with its own backbone and with the paper's."""
        return self.baseline, *self.space.published_starts

    @property
    def references(self) -> tuple[Architecture, ...]:
        """The candidate with its own backbone and with the paper's."""
        return self.starts

    @property
    def baseline(self) -> Architecture:
        """The candidate, with its own backbone as a code if it has one."""
        return self.space.baseline

    def pretrained_weights(self, _: Backbone) -> None:
        """Return none: searched backbones are trained from scratch."""

    @property
    def backbones(self) -> tuple[Backbone, ...]:
        """The candidate's."""
        return (self.candidate.architecture.backbone,)

    def record(self, study: optuna.Study) -> None:
        """Record which trial of stage one the study refines."""
        if RECORDED not in study.user_attrs:
            described = {
                "study": self.candidate.study,
                "trial": self.candidate.trial,
                "architecture": str(self.candidate.architecture),
                "baseline": str(self.baseline),
            }
            study.set_user_attr(RECORDED, described)

    def differing_keys(self, recorded: Mapping[str, Any]) -> list[str]:
        """Return the recipe's keys in which a study differs."""
        return self.recipe.differing_keys(recorded["recipe"], self.stage)

    @property
    def overview(self) -> str:
        """The studies of stage two, and the size of the space for each kind of candidate that stage one may find."""
        lines = [
            f"studies {self.recipe.name}/modular/C0 to C{self.settings.candidates - 1}, one for each candidate picked "
            "from stage one's front"
        ]
        for example in examples(self.recipe):
            lines.append(f"  {example.space.size:,} architectures for {example.candidate.architecture}")
        return "\n".join(lines)

    def goal(self, n_trials: int | None, sampler: str | None) -> str:
        """Say what a run would evaluate."""
        return (
            f"a run would evaluate {n_trials or self.trials} for each candidate, the candidate itself and those with "
            f"the paper's backbones of its kind first and the others proposed by {sampler or self.sampler}"
        )


def recorded_candidates(storage: RDBStorage, recipe: Recipe) -> list[Candidate]:
    """Return the candidates that have studies of stage two, by their numbers."""
    studies = [study for study in storage.get_all_studies() if study.study_name.startswith(f"{recipe.name}/modular/")]
    recorded = [
        _candidate_of(study.study_name, study.user_attrs[RECORDED]) for study in studies if RECORDED in study.user_attrs
    ]
    return sorted(filter(None, recorded), key=lambda candidate: candidate.number)


def _candidate_of(study_name: str, recorded: Mapping[str, Any]) -> Candidate | None:
    """Return the candidate of a study of stage two; None where the name is not one's, as a copy's."""
    name = _STUDY_NAME.fullmatch(study_name)
    if name is None:
        return None
    architecture = Architecture.parse(recorded["architecture"])
    return Candidate(int(name[2]), recorded["study"], recorded["trial"], architecture)


def refined_trial(study: optuna.Study) -> int | None:
    """Return the number of stage one's trial that a study of stage two refines; None for another study."""
    recorded = study.user_attrs.get(RECORDED)
    return None if recorded is None else int(recorded["trial"])


def examples(recipe: Recipe) -> list[ModularSearch]:
    """Return searches of stage two for candidates that stage one may find: one per kind of block, and one without."""
    space = recipe.structural.space
    neck = FPN(1, 4, 5, space.fpn_channels) if "FPN" in space.necks else None
    size = InputSize.parse(space.input_sizes[-1])
    by_block: dict[str | None, ModularSearch] = {}
    for backbone in space.all_backbones:
        candidate = Candidate(len(by_block), "", 0, Architecture(size, backbone, neck, None, RetinaNetHead()))
        block = None if backbone.code is None else backbone.code.block
        by_block.setdefault(block, ModularSearch(recipe, candidate))
    return list(by_block.values())
