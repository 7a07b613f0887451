"""Recipe: what one search is; ``recipe_file.py`` reads it from YAML."""

import importlib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from smnas_optuna.architecture import FPN, Architecture, ClassicBackbone, InputSize, RetinaNetHead
from smnas_optuna.search_space.modular import ModularSpace
from smnas_optuna.search_space.structural import StructuralSpace

Objective = Literal["map", "map_50", "map_75", "latency_ms", "flops", "params"]
ModularObjective = Literal[Objective, "backbone_flops", "backbone_params"]
StageName = Literal["structural", "modular", "transfer"]
SamplerName = Literal["pop", "nsga2", "tpe", "random"]


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"found {value}, expected a number")
    return value


# Neither true nor .inf is a number; 1e-3, which YAML 1.1 takes for text, is.
PositiveInt = Annotated[int, Field(strict=True, gt=0)]
NonNegativeInt = Annotated[int, Field(strict=True, ge=0)]
PositiveFloat = Annotated[float, BeforeValidator(_no_boolean), Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, BeforeValidator(_no_boolean), Field(ge=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Split(_Section):
    """One part of a data set.

    Args:
        annotations: Json file, relative to the data set's root.
        images: Folder that the json's file names are relative to, itself relative to the root.
    """

    annotations: Path
    images: Path


def _distinct_classes(classes: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(classes)) != len(classes):
        raise ValueError("a class is listed more than once")
    return classes


class CocoDataset(_Section):
    """Images with boxes in COCO's json format; the class names are the json's categories."""

    kind: Literal["coco"] = "coco"
    root: Path = Path()
    train: Split
    val: Split


class DigitsDataset(_Section):
    """Scenes composed of scikit-learn's handwritten digits, made on first use; see ``evaluation/digits.py``.

    Args:
        classes: The first so many digits, counted from 0.
        train_images: Scenes to train on.
        val_images: Scenes to validate on, composed of other digits.
        width: Scene width in pixels.
        height: Scene height in pixels.
    """

    kind: Literal["digits"]
    classes: Annotated[int, Field(ge=1, le=10)] = 10
    train_images: PositiveInt = 160
    val_images: PositiveInt = 60
    width: Annotated[int, Field(ge=48)] = 160
    height: Annotated[int, Field(ge=48)] = 120


class VocDataset(_Section):
    """Images with boxes in Pascal VOC's XML format; see ``evaluation/voc.py``.

    An image set is called ``FOLDER/NAME``, or ``NAME`` where the root itself is laid out so: the images that
    ``FOLDER/ImageSets/Main/NAME.txt`` lists, with boxes in ``FOLDER/Annotations`` and pictures in
    ``FOLDER/JPEGImages``. Without such a list it is a folder of XML files with the pictures beside them.

    Args:
        root: Folder that the image sets are below, such as VOCdevkit.
        train: Image sets to train on.
        val: Image sets to validate on.
        classes: Names in the order of their labels; every object has one of them.
    """

    kind: Literal["voc"]
    root: Path = Path()
    train: Annotated[tuple[str, ...], Field(min_length=1)] = ("VOC2007/trainval", "VOC2012/trainval")
    val: Annotated[tuple[str, ...], Field(min_length=1)] = ("VOC2007/test",)
    classes: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_distinct_classes)] = (
        *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
        *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    )


class BddDataset(_Section):
    """Images with boxes in the format of BDD100K, as published in 2018 or in 2020; see ``evaluation/bdd.py``."""

    kind: Literal["bdd"]
    root: Path = Path()
    train: Split = Split(annotations=Path("labels/det_20/det_train.json"), images=Path("images/100k/train"))
    val: Split = Split(annotations=Path("labels/det_20/det_val.json"), images=Path("images/100k/val"))


Dataset = CocoDataset | VocDataset | BddDataset | DigitsDataset


class Timing(_Section):
    """How inference time is measured.

    Args:
        images: Validation images timed, one at a time.
        warmup: Images run before, untimed.
        rounds: Times that the timed images are gone through; the spread is that of the rounds' medians.
        spread_limit: Largest spread, as a share of the time, with which a measurement is taken as it is.
        attempts: Measurements at the most; of several the one with the least spread counts.
    """

    images: PositiveInt = 100
    warmup: PositiveInt = 20
    rounds: Annotated[int, Field(ge=2)] = 5
    spread_limit: PositiveFloat = 0.1
    attempts: PositiveInt = 3


class Device(_Section):
    """The target device.

    Args:
        kind: ``auto`` is a CUDA GPU where there is one, else the CPU.
        gpus_per_trial: GPUs that train one architecture together.
        cpu_threads: Threads that torch computes with; null for its own choice, one per core. Small networks train
            fastest with 1.
        memory_gb: GiB that training may take, on each GPU or of this machine; null for what there is, less a margin.
            A batch that takes more goes through the detector in parts, and an architecture of which not even one
            image fits is skipped.
        timing: How inference time is measured there.
    """

    kind: Literal["auto", "cpu", "cuda"] = "auto"
    gpus_per_trial: PositiveInt = 1
    cpu_threads: PositiveInt | None = None
    memory_gb: PositiveFloat | None = None
    timing: Timing = Timing()


class Detector(_Section):
    """What all detectors of a search have in common; the defaults are MMDetection's.

    Args:
        norm: Normalisation of the backbone: ``BN``, ``SyncBN``, whose statistics are of the images on all GPUs of a
            trial, or ``GN``, which also goes into neck, RPN and RetinaNet head.
        weight_standardization: Standardise the weights of the convolutions that a normalisation follows.
        anchor_scale: Side of an RPN's square anchor in strides of its level.
        proposals: Most proposals per image that reach the RCNN head in testing; half as many with guided anchoring,
            at most 300.
        roi_samples: Proposals per image that an RCNN head learns from.
        fc_channels: Width of the RCNN head's two fully connected layers.
        retina_convs: Convolutions in each branch of the RetinaNet head.
        max_detections: Detections per image.
    """

    norm: Literal["BN", "SyncBN", "GN"] = "BN"
    weight_standardization: bool = False
    anchor_scale: PositiveFloat = 8
    proposals: PositiveInt = 1000
    roi_samples: PositiveInt = 512
    fc_channels: PositiveInt = 1024
    retina_convs: PositiveInt = 4
    max_detections: PositiveInt = 100


class Training(_Section):
    """How each architecture is trained: SGD with a cosine schedule.

    Args:
        epochs: Passes over the training split.
        batch_size: Images per step, over all GPUs of a trial.
        lr: Highest learning rate.
        base_batch_size: Batch size that ``lr`` is meant for; it is scaled linearly to ``batch_size``. Null: ``lr`` is
            meant for ``batch_size``.
        final_lr: Learning rate that the cosine ends at.
        momentum: Of SGD.
        weight_decay: Of SGD.
        warmup_iterations: Steps over which the learning rate rises linearly.
        clip_gradients: Largest L2 norm of the gradient; null for none.
        flip: Probability of a horizontal flip.
        weights: Where the backbones start: ``imagenet``, ``none`` (from scratch), or a file per backbone.
        amp: Automatic mixed precision in training; CUDA only.
        loader_workers: Processes that load images, per GPU.
        time_limit_minutes: Longest time for one trial; null for none.
        seed: Of initialisation and shuffling.
    """

    epochs: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    base_batch_size: PositiveInt | None = None
    final_lr: NonNegativeFloat = 0.0001
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 0.0001
    warmup_iterations: NonNegativeInt = 500
    clip_gradients: PositiveFloat | None = None
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    weights: Literal["imagenet", "none"] | dict[str, Path] = "imagenet"
    amp: bool = False
    loader_workers: NonNegativeInt = 2
    time_limit_minutes: PositiveFloat | None = None
    seed: NonNegativeInt = 0

    @property
    def scaled_lr(self) -> float:
        """The highest learning rate at this batch size (linear scaling rule, Goyal et al. 2017)."""
        return self.lr * self.batch_size / (self.base_batch_size or self.batch_size)


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


class Stage(_Section):
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
        candidates: How many of the front's architectures are taken on.
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


class Transfer(_Section):
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
    pretrained: dict[str, Path] = {}
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
# And of the recipe; a batch in parts is the same training, see evaluation/fitting.py.
_FREE_KEYS_OF_ALL = ("device.memory_gb",)


class Recipe(_Section):
    """One search.

    Args:
        name: Studies are called ``<name>/structural`` and so on.
        dataset: What to train and validate on.
        device: What to measure time on.
        structural: Stage one.
        modular: Stage two; null for a search that ends after stage one.
        transfer: Training of architectures that were found elsewhere; null for none.
        imports: Python modules that add to what can be searched, such as
            :func:`~smnas_optuna.architecture.register_neck` does; they are imported wherever the recipe is used.
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
            backbone = ClassicBackbone(name, found.base_channels)
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
