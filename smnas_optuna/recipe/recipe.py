"""Recipe: what one search is; ``recipe_file.py`` reads it from YAML."""

import importlib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, ValidationError, model_validator

from smnas_optuna.parts.architecture import Architecture, InputSize, parse_backbone
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.heads.retinanet import RetinaNetHead
from smnas_optuna.parts.necks.fpn import FPN
from smnas_optuna.parts.section import PositiveInt, Section
from smnas_optuna.recipe.settings import Dataset, Device, Training
from smnas_optuna.search_space.modular import ModularSpace
from smnas_optuna.search_space.structural import StructuralSpace

Objective = Literal["map", "map_50", "map_75", "latency_ms", "flops", "params"]
ModularObjective = Literal[Objective, "backbone_flops", "backbone_params"]
StageName = Literal["structural", "modular", "transfer"]
SamplerName = Literal["pop", "nsga2", "tpe", "random"]


def _import(modules: tuple[str, ...]) -> tuple[str, ...]:
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
    """What the two stages have in common.

    Args:
        trials: Architectures to evaluate in total, in each study.
        sampler: Which Optuna sampler proposes them; ``pop`` is the partial-order sampler.
        detector: What all detectors have in common.
        training: How each is trained.
    """

    trials: PositiveInt
    sampler: SamplerName = "pop"
    detector: Detector = Detector()
    training: Training


class Structural(Stage):
    """Stage one.

    Args:
        objectives: mAPs are maximised, costs minimised.
        space: What may be combined.
        seeds: Architectures to evaluate first, in canonical text.
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
            if self.space.base_channels != 64:
                raise ValueError("training.weights: imagenet weights fit base_channels 64 only; expected none")
            _refuse_imagenet_weights_of_other_layers(self.detector)
        return self


def _refuse_imagenet_weights_of_other_layers(detector: Detector) -> None:
    if detector.norm == "GN" or detector.weight_standardization:
        raise ValueError(
            "training.weights: imagenet weights were trained with norm BN and no weight_standardization; expected none"
        )


class Modular(Stage):
    """Stage two, a study for each candidate from the front of stage one.

    Args:
        candidates: How many of the front's architectures stage two refines.
        objectives: mAPs are maximised, costs minimised; the backbone's costs are known without building it.
        space: What the backbones may consist of.
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
        if self.training.weights != "none":
            raise ValueError("training.weights: searched backbones have no pre-trained weights; expected none")
        return self


def _by_backbone(files: dict[str, Path]) -> dict[str, Path]:
    named = {str(parse_backbone(text)): file for text, file in files.items()}
    if len(named) < len(files):
        raise ValueError("a backbone is listed more than once")
    return named


class Transfer(Section):
    """Training of architectures that were found elsewhere on this recipe's data set, beside baselines.

    Args:
        objectives: mAPs are maximised, costs minimised.
        baselines: Architectures to compare with, in canonical text, trained in the same way.
        pretrained: Pre-trained weights of backbones by their texts, such as ``python -m smnas_optuna.pretrain`` makes
            of a searched one; of others ``training.weights`` decides, and a searched one is trained from scratch.
        detector: What all detectors have in common.
        training: How each is trained.
    """

    objectives: Annotated[tuple[Objective, ...], Field(min_length=1), AfterValidator(_distinct_objectives)] = (
        "map",
        "latency_ms",
    )
    baselines: tuple[str, ...] = ()
    pretrained: Annotated[dict[str, Path], AfterValidator(_by_backbone)] = Field(default={})
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
            raise ValueError("training.weights: expected imagenet or none; a file per backbone goes under pretrained")
        if self.training.weights == "imagenet":
            _refuse_imagenet_weights_of_other_layers(self.detector)
        return self


# What may change between two runs that share a study: it decides how far and how the search goes on, not what a trial's
# values mean. Of a stage:
_FREE_KEYS = (
    *("trials", "sampler", "seeds", "candidates", "baselines"),
    *("training.loader_workers", "training.time_limit_minutes"),
)
# And of the recipe; a batch in parts is the same training, see training/fitting.py.
_FREE_KEYS_OF_ALL = ("device.memory_gb",)


class Recipe(Section):
    """One search.

    Args:
        name: Studies are called ``<name>/structural`` and so on.
        dataset: What to train and validate on.
        device: What to measure time on.
        structural: Stage one.
        modular: Stage two; null for a search that ends after stage one.
        transfer: Training of architectures that were found elsewhere; null for none.
        imports: Python modules that add to what can be searched, such as
            :func:`~smnas_optuna.parts.necks.fpn.register_neck` does; they are imported wherever the recipe is used.
    """

    # First, for what they add is looked for in the sections.
    imports: Annotated[tuple[str, ...], AfterValidator(_import)] = ()
    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    dataset: Annotated[Dataset, Field(discriminator="kind")]
    device: Device = Device()
    structural: Structural
    modular: Modular | None = None
    transfer: Transfer | None = None

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        _import(self.imports)

    @model_validator(mode="after")
    def _batch_is_shared_out(self) -> "Recipe":
        for name, stage in self.stages.items():
            batch, gpus = stage.training.batch_size, self.device.gpus_per_trial
            if batch % gpus:
                raise ValueError(f"{name}.training.batch_size: {batch} images cannot be shared out to {gpus} GPUs")
        return self

    @model_validator(mode="after")
    def _stage_two_can_begin_where_stage_one_ends(self) -> "Recipe":
        if self.modular is None:
            return self
        found = self.structural.space
        for name in found.backbones:
            backbone = found.backbone(name)
            whole = Architecture(InputSize(64, 64), backbone, FPN(1, 4, 4, found.fpn_channels), None, RetinaNetHead())
            try:
                self.modular.space.for_candidate(whole)
            except ValueError as error:
                raise ValueError(f"modular.space has no place for a candidate with {backbone}: {error}") from None
        return self

    @property
    def stages(self) -> "dict[StageName, Structural | Modular | Transfer]":
        """The stages that the recipe has, by name."""
        sections: dict[StageName, Structural | Modular | Transfer | None] = {
            "structural": self.structural,
            "modular": self.modular,
            "transfer": self.transfer,
        }
        return {name: section for name, section in sections.items() if section is not None}

    def differing_keys(self, recorded: dict[str, Any], stage: StageName) -> list[str]:
        """Return the key paths at which this recipe and a study's recorded one mean different trials of a stage."""
        mine, theirs = _flatten(self.model_dump(mode="json")), _flatten(_with_defaults(recorded))
        others = set(get_args(StageName)) - {stage}
        free = {f"{stage}.{key}" for key in _FREE_KEYS} | {*_FREE_KEYS_OF_ALL}
        absent = object()
        different = [key for key in dict.fromkeys([*mine, *theirs]) if mine.get(key, absent) != theirs.get(key, absent)]
        return [key for key in different if key.partition(".")[0] not in others and key not in free]


def _with_defaults(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded recipe with the keys that have come up since."""
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
