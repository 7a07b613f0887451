"""Recipe: the description of a search; ``recipe_file.py`` reads it from YAML."""

import importlib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, ValidationError, model_validator

from smnas_optuna.parts.architecture import Architecture, InputSize
from smnas_optuna.parts.backbones.backbone import BACKBONES
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.heads.retinanet import RetinaNetHead
from smnas_optuna.parts.necks.fpn import FPN
from smnas_optuna.parts.section import PositiveInt, Section
from smnas_optuna.recipe.settings import Constraints, Dataset, Device, FinalTraining, Training
from smnas_optuna.search_space.modular import ModularSpace
from smnas_optuna.search_space.structural import StructuralSpace

Objective = Literal["map", "map_50", "map_75", "latency_ms", "flops", "params"]
ModularObjective = Literal[Objective, "backbone_flops", "backbone_params"]
StageName = Literal["structural", "modular", "transfer"]
SamplerName = Literal["pop", "nsga2", "tpe", "random"]


def _import_modules(modules: tuple[str, ...]) -> tuple[str, ...]:
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # a module may raise anything
            raise ValueError(f"{name} cannot be imported: {type(error).__name__}: {error}") from None
    return modules


def _distinct_objectives(objectives: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(objectives)) != len(objectives):
        raise ValueError("an objective is listed more than once")
    return objectives


class Stage(Section):
    """Keys that the stages ``structural`` and ``modular`` share.

    Args:
        trials: Architectures to evaluate in each study, over all runs.
        sampler: The Optuna sampler that proposes them; ``pop`` is ``PartialOrderPruningSampler``.
        detector: Settings that all detectors of the stage share.
        training: How each detector is trained.
    """

    trials: PositiveInt
    sampler: SamplerName = "pop"
    detector: Detector = Detector()
    training: Training


class Structural(Stage):
    """Stage one: which backbone, neck, RPN, head and input size.

    Args:
        objectives: Metrics to optimise; mAPs are maximised, costs minimised.
        space: The search space.
        seeds: Architectures to evaluate first, as canonical texts.
    """

    objectives: Annotated[tuple[Objective, ...], Field(min_length=1), AfterValidator(_distinct_objectives)] = (
        "map",
        "latency_ms",
    )
    space: StructuralSpace = StructuralSpace()
    seeds: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _seeds_lie_in_the_space(self) -> "Structural":
        for text in self.seeds:
            try:
                self.space.params(Architecture.parse(text))
            except ValueError as error:
                raise ValueError(f"seed {text!r} does not fit the space: {error}") from None
        return self

    @model_validator(mode="after")
    def _weights_for_every_backbone(self) -> "Structural":
        weights = self.training.weights
        if isinstance(weights, dict) and set(weights) != set(self.space.backbones):
            raise ValueError(
                f"training.weights names {', '.join(sorted(weights))}; expected a file for each of "
                f"{', '.join(self.space.backbones)}"
            )
        if weights == "imagenet":
            for backbone in self.space.all_backbones:
                if backbone.imagenet_weights is None:
                    if self.space.base_channels != 64:
                        raise ValueError("training.weights: imagenet weights fit base_channels 64 only; expected none")
                    raise ValueError(
                        f"training.weights: there are no imagenet weights of {backbone}; expected a file for each "
                        "backbone, auto or none"
                    )
            if not all(backbone.HAS_OWN_LAYERS for backbone in self.space.all_backbones):
                _refuse_imagenet_weights_of_other_layers(self.detector)
        return self

    @model_validator(mode="after")
    def _families_are_in_the_space(self) -> "Structural":
        choices = (*self.space.backbones, *self.space.necks, *self.space.rpns, *self.space.heads)
        for name in self.training.families:
            if not any(choice.startswith(name) for choice in choices):
                raise ValueError(
                    f"training.families: nothing in the space begins with {name!r}; expected the beginning of one of "
                    f"{', '.join(dict.fromkeys(choices))}"
                )
        return self


def _refuse_imagenet_weights_of_other_layers(detector: Detector) -> None:
    if not detector.has_published_layers:
        raise ValueError(
            "training.weights: imagenet weights were trained with norm BN and no weight_standardization; expected none"
        )


class Modular(Stage):
    """Stage two: a study for each candidate of stage one, which searches its backbone's depth and width.

    Args:
        candidates: Number of candidates, which are taken from the Pareto front of stage one.
        objectives: Metrics to optimise; mAPs are maximised, costs minimised. ``backbone_flops`` and
            ``backbone_params`` are computed without building the network.
        space: The search space of the backbones and of the FPN's channels.
    """

    candidates: PositiveInt = 6
    objectives: Annotated[tuple[ModularObjective, ...], Field(min_length=1), AfterValidator(_distinct_objectives)] = (
        "map",
        "backbone_flops",
    )
    space: ModularSpace = ModularSpace()
    detector: Detector = Detector(norm="GN", weight_standardization=True)

    @model_validator(mode="after")
    def _trained_from_scratch(self) -> "Modular":
        if self.training.weights not in ("auto", "none"):
            raise ValueError("training.weights: searched backbones have no pretrained weights; expected none or auto")
        return self


def _with_canonical_keys(files: dict[str, Path]) -> dict[str, Path]:
    canonical = {str(BACKBONES.parse(text)): file for text, file in files.items()}
    if len(canonical) < len(files):
        raise ValueError("a backbone is listed more than once")
    return canonical


class Transfer(Section):
    """The stage ``transfer``: trains architectures that another study found on this recipe's data set, and baselines.

    Args:
        objectives: Metrics to record; mAPs are maximised, costs minimised.
        baselines: Architectures to compare with, as canonical texts, trained in the same way.
        pretrained: Files of weights by the text of a backbone, such as ``python -m smnas_optuna.pretrain`` writes for
            a searched backbone. For a published backbone that is not listed, ``training.weights`` decides; a searched
            one is trained from scratch.
        detector: Settings that all detectors of the stage share.
        training: How each detector is trained.
    """

    objectives: Annotated[tuple[Objective, ...], Field(min_length=1), AfterValidator(_distinct_objectives)] = (
        "map",
        "latency_ms",
    )
    baselines: tuple[str, ...] = ()
    pretrained: Annotated[dict[str, Path], AfterValidator(_with_canonical_keys)] = Field(default={})
    detector: Detector = Detector()
    training: Training

    @model_validator(mode="after")
    def _baselines_are_architectures(self) -> "Transfer":
        for text in self.baselines:
            Architecture.parse(text)
        return self

    @model_validator(mode="after")
    def _weights_are_for_all(self) -> "Transfer":
        if isinstance(self.training.weights, dict):
            raise ValueError(
                "training.weights: expected auto, imagenet or none; a file per backbone goes under pretrained"
            )
        if self.training.weights == "imagenet":
            _refuse_imagenet_weights_of_other_layers(self.detector)
        return self


# Keys of a stage that may change between two runs of a study: they affect how the search continues, not what the values
# of a trial mean.
_FREE_STAGE_KEYS = (
    *("trials", "sampler", "seeds", "candidates", "baselines"),
    *("training.loader_workers", "training.time_limit_minutes"),
)
# The other keys of a recipe that may change. Splitting a batch does not change the training, see training/fitting.py.
_FREE_KEYS = ("device.memory_gb",)


class Recipe(Section):
    """The description of a search.

    Args:
        name: First part of the names of its studies: ``<name>/structural``, ``<name>/modular/C0`` and so on.
        dataset: Data set to train and validate on.
        device: Device to train and to measure inference time on.
        constraints: Limits that a detector of any stage has to keep.
        structural: Stage one.
        modular: Stage two; null to end the search after stage one.
        transfer: Training of architectures from another study; null for none.
        final: Final training of the detector that stage one recommends; null for none.
        imports: Python modules that register further parts, see :mod:`smnas_optuna.parts.part`; every process that uses
            the recipe imports them.
    """

    # Validated first, since the other sections may name parts that these modules register.
    imports: Annotated[tuple[str, ...], AfterValidator(_import_modules)] = ()
    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    dataset: Annotated[Dataset, Field(discriminator="kind")]
    device: Device = Device()
    constraints: Constraints = Constraints()
    structural: Structural
    modular: Modular | None = None
    transfer: Transfer | None = None
    final: FinalTraining | None = None

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        _import_modules(self.imports)

    @model_validator(mode="after")
    def _batches_divide_among_gpus(self) -> "Recipe":
        for name, stage in self.stages.items():
            batch, gpus = stage.training.batch_size, self.device.gpus_per_trial
            if batch % gpus:
                raise ValueError(
                    f"{name}.training.batch_size: found {batch}, expected a multiple of device.gpus_per_trial, {gpus}"
                )
        return self

    @model_validator(mode="after")
    def _modular_space_contains_every_candidate(self) -> "Recipe":
        if self.modular is None:
            return self
        space = self.structural.space
        for backbone in space.all_backbones:
            # This neck uses all levels, so all stages of the backbone are built and checked.
            neck = FPN(1, 4, 4, space.fpn_channels)
            try:
                self.modular.space.for_candidate(Architecture(InputSize(64, 64), backbone, neck, None, RetinaNetHead()))
            except ValueError as error:
                raise ValueError(f"modular.space does not contain candidates with {backbone}: {error}") from None
        return self

    @model_validator(mode="after")
    def _costs_of_every_candidate_are_known(self) -> "Recipe":
        if self.modular is None:
            return self
        unknown = [str(each) for each in self.structural.space.all_backbones if each.code is None]
        costs = [each for each in self.modular.objectives if each in ("backbone_flops", "backbone_params")]
        if unknown and costs:
            raise ValueError(
                f"modular.objectives: {costs[0]} is for backbones that stage two searches, and {unknown[0]} of "
                "structural.space has no code; expected flops, params or latency_ms"
            )
        return self

    @property
    def stages(self) -> "dict[StageName, Structural | Modular | Transfer]":
        """The recipe's stages by name."""
        sections: dict[StageName, Structural | Modular | Transfer | None] = {
            "structural": self.structural,
            "modular": self.modular,
            "transfer": self.transfer,
        }
        return {name: section for name, section in sections.items() if section is not None}

    def differing_keys(self, recorded: dict[str, Any], stage: StageName) -> list[str]:
        """Return the keys whose values differ between two recipes, so that their trials cannot share a study.

        Args:
            recorded: The recipe that a study was created with, as ``model_dump(mode="json")`` gives it.
            stage: The stage of the study; keys of other stages and of the final training are ignored.

        Returns:
            Paths such as ``structural.training.lr``; none for keys that may change between two runs.
        """
        mine, theirs = _flatten(self.model_dump(mode="json")), _flatten(_with_defaults(recorded))
        others = {*get_args(StageName), "final"} - {stage}
        free = {f"{stage}.{key}" for key in _FREE_STAGE_KEYS} | {*_FREE_KEYS}
        absent = object()
        different = [key for key in dict.fromkeys([*mine, *theirs]) if mine.get(key, absent) != theirs.get(key, absent)]
        return [key for key in different if key.partition(".")[0] not in others and key not in free]


def _with_defaults(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded recipe with the defaults of keys that were added to recipes since."""
    try:
        return Recipe.model_validate(recorded).model_dump(mode="json")
    except ValidationError:
        return recorded


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
