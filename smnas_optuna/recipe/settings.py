"""Sections of a recipe that say how an architecture is evaluated: data set, device and training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.optimization import Optimization, combined_keys, published_optimization
from smnas_optuna.parts.section import NonNegativeInt, PositiveFloat, PositiveInt, Section


class Split(Section):
    """The training or the validation split of a data set.

    Args:
        annotations: JSON file, relative to the data set's ``root``.
        images: Folder of the images, relative to ``root``; file names in the JSON file are relative to it.
    """

    annotations: Path
    images: Path


def _distinct_classes(classes: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(classes)) != len(classes):
        raise ValueError("a class is listed more than once")
    return classes


class CocoDataset(Section):
    """Images with boxes in COCO's JSON format; the categories of the JSON file are the classes."""

    kind: Literal["coco"] = "coco"
    root: Path = Path()
    train: Split
    val: Split


class DigitsDataset(Section):
    """Demo data: scenes of scikit-learn's handwritten digits, generated on first use; see ``data/digits.py``.

    Args:
        classes: Number of classes, 1 to 10; the digits from 0 to ``classes - 1`` are used.
        train_images: Number of training scenes.
        val_images: Number of validation scenes, which show other digits than training scenes.
        width: Scene width in pixels.
        height: Scene height in pixels.
    """

    kind: Literal["digits"]
    classes: Annotated[int, Field(ge=1, le=10)] = 10
    train_images: PositiveInt = 160
    val_images: PositiveInt = 60
    width: Annotated[int, Field(ge=48)] = 160
    height: Annotated[int, Field(ge=48)] = 120


class VocDataset(Section):
    """Images with boxes in Pascal VOC's XML format; see ``data/voc.py``.

    An image set ``FOLDER/NAME`` consists of the images that ``FOLDER/ImageSets/Main/NAME.txt`` lists, with boxes in
    ``FOLDER/Annotations`` and pictures in ``FOLDER/JPEGImages``; ``FOLDER/`` may be omitted where these are in the root
    itself. If there is no such list, an image set is a folder of XML files with the pictures beside them.

    Args:
        root: Folder that contains the image sets, such as VOCdevkit.
        train: Image sets to train on.
        val: Image sets to validate on.
        classes: Class names in the order of their labels; an object of another class is an error.
    """

    kind: Literal["voc"]
    root: Path = Path()
    train: Annotated[tuple[str, ...], Field(min_length=1)] = ("VOC2007/trainval", "VOC2012/trainval")
    val: Annotated[tuple[str, ...], Field(min_length=1)] = ("VOC2007/test",)
    classes: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_distinct_classes)] = (
        *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
        *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    )


class BddDataset(Section):
    """Images with boxes in the format of BDD100K, as published in 2018 or in 2020; see ``data/bdd.py``."""

    kind: Literal["bdd"]
    root: Path = Path()
    train: Split = Split(annotations=Path("labels/det_20/det_train.json"), images=Path("images/100k/train"))
    val: Split = Split(annotations=Path("labels/det_20/det_val.json"), images=Path("images/100k/val"))


class FolderDataset(Section):
    """A folder of images with boxes in YOLO's, COCO's, Pascal VOC's or BDD100K's format; see ``data/folder``.

    Args:
        root: The folder, or a ``data.yaml`` that describes it.
        format: Format of the labels; null to recognise it.
        validation: File that lists the images to validate on, one per line, relative to the folder; all others are
            trained on. Null for the folder's own validation part; if it has none, one is split off.
        train_images: Train on so many of the training images at most, the same ones in all trials; null for all.
        val_images: Validate on so many of the validation images at most; null for all.
    """

    kind: Literal["folder"]
    root: Path
    format: Literal["yolo", "coco", "voc", "bdd"] | None = None
    validation: Path | None = None
    train_images: PositiveInt | None = None
    val_images: PositiveInt | None = None


Dataset = CocoDataset | VocDataset | BddDataset | DigitsDataset | FolderDataset


class Timing(Section):
    """How inference time is measured.

    Args:
        images: Number of validation images that are timed, one at a time.
        warmup: Number of images that are run untimed before.
        rounds: How often the images are timed; the spread of a measurement is the interquartile range of the medians
            of its rounds.
        spread_limit: Largest spread, as a share of the time, with which a measurement is not repeated.
        attempts: Largest number of measurements; the one with the least spread is used.
        compiled: Time layers that torch.compile has compiled, on a GPU with CUDA graphs. Without it, the time of a
            small detector on a fast GPU is mostly that of Python. Compiling takes a minute or more per trial, and only
            images of the most frequent size are timed.
    """

    images: PositiveInt = 100
    warmup: PositiveInt = 20
    rounds: Annotated[int, Field(ge=2)] = 5
    spread_limit: PositiveFloat = 0.1
    attempts: PositiveInt = 3
    compiled: bool = False


class Device(Section):
    """The device that detectors are trained and timed on.

    Args:
        kind: ``auto`` is a CUDA GPU where there is one, else the CPU.
        gpus_per_trial: Number of GPUs that train one architecture together.
        cpu_threads: Number of torch's threads; null for torch's default, one per core. Small networks train fastest
            with 1.
        memory_gb: Memory that training may use, in GiB, of each GPU or of this machine; null for all memory, less a
            margin. A larger batch is split, and an architecture is skipped if not even one image fits.
        timing: How inference time is measured.
    """

    kind: Literal["auto", "cpu", "cuda"] = "auto"
    gpus_per_trial: PositiveInt = 1
    cpu_threads: PositiveInt | None = None
    memory_gb: PositiveFloat | None = None
    timing: Timing = Timing()


class Constraints(Section):
    """Limits that a detector has to keep; one that violates them is not on the Pareto front.

    A detector that costs too much is not trained: its parameters are known before, and its time is measured before.

    Args:
        max_latency_ms: Largest inference time for one image, in milliseconds.
        max_params: Largest number of parameters.
        min_map: Smallest mAP, 0 to 1.
    """

    max_latency_ms: PositiveFloat | None = None
    max_params: PositiveFloat | None = None
    min_map: Annotated[float, Field(gt=0, lt=1)] | None = None

    def excesses(self, known: Mapping[str, float]) -> dict[str, float]:
        """Return by how much a detector violates each constraint: positive values are violations.

        Args:
            known: What is known of it by now, by the names of metrics; other constraints are left out.
        """
        limits = self.model_dump(exclude_none=True)
        found: dict[str, float] = {}
        for name, limit in limits.items():
            kind, _, metric = name.partition("_")
            if metric in known:
                # Costs as shares of the limit, so that excesses of several kinds are comparable.
                found[name] = known[metric] / limit - 1 if kind == "max" else limit - known[metric]
        return found


# What a recipe's learning rate goes with, unless the recipe says otherwise.
_WITH_OWN_LR: Mapping[str, Mapping[str, Any]] = {
    "SGD": {"final_lr": 0.0001, "momentum": 0.9, "weight_decay": 0.0001, "warmup_iterations": 500},
    "AdamW": {"weight_decay": 0.05, "warmup_iterations": 500},
}


ScaleJitter = tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(ge=1, le=10)]]


class Training(Optimization):
    """How each architecture is trained.

    With ``lr``, all architectures are trained alike: with SGD, unless ``optimizer`` says otherwise. Without it, each is
    trained as its parts were published, see ``docs/own_data.md``, except for the keys that are given. The keys
    of :class:`~smnas_optuna.parts.optimization.Optimization` can be given for some parts only, in ``families``.

    Args:
        epochs: Passes over the training split.
        batch_size: Images per step, over all GPUs of a trial; a multiple of ``device.gpus_per_trial``.
        families: Settings of the optimizer for architectures with certain parts, by what the texts of these parts begin
            with, such as ``RTMDet`` or ``timm:``. If several fit an architecture, the last one that has a key decides.
        flip: Probability of a horizontal flip.
        scale_jitter: Smallest and largest random scale of the images, relative to the input size: at most and at least
            1. Of an image that is enlarged, a random part is shown.
        photometric: Change brightness, contrast, saturation and hue at random.
        mosaic: Train on parts of four images beside each other, instead of ``scale_jitter``.
        mixup: Lay another image over each image.
        plain_epochs: Epochs at the end that are trained without mosaic and mixup; null for a fifteenth of all.
        weights: Initial weights. ``auto`` uses the first of these that is available: a file in ``--weights-dir``; a
            detector with the same backbone that MMDetection has trained on COCO; ImageNet weights of the backbone;
            none. ``imagenet`` requires those of all backbones, and ``none`` trains from scratch. Or a file per
            backbone.
        amp: Train with automatic mixed precision, in bfloat16 on GPUs that support it; CUDA only.
        loader_workers: Processes that load images, per GPU; null for 2 on a CPU, and on GPUs for 2 to 8, depending on
            the number of cores.
        time_limit_minutes: Longest duration of a trial; null for no limit.
        seed: Seed of the weights' initialisation and of the shuffling of images.
    """

    epochs: PositiveInt
    batch_size: PositiveInt
    families: dict[str, Optimization] = Field(default={})
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    scale_jitter: ScaleJitter = (1.0, 1.0)
    photometric: bool = False
    mosaic: bool = False
    mixup: bool = False
    plain_epochs: NonNegativeInt | None = None
    weights: Literal["auto", "imagenet", "none"] | dict[str, Path] = "auto"
    amp: bool = False
    loader_workers: NonNegativeInt | None = None
    time_limit_minutes: PositiveFloat | None = None
    seed: NonNegativeInt = 0

    @model_validator(mode="before")
    @classmethod
    def _with_what_goes_with_the_learning_rate(cls, keys: object) -> object:
        if not isinstance(keys, dict) or keys.get("lr") is None:
            return keys
        optimizer = keys.get("optimizer") or "SGD"
        common = {"optimizer": optimizer, "backbone_lr": 1.0, "average_weights": False}
        defaults = common | dict(_WITH_OWN_LR.get(str(optimizer), {}))
        return keys | {key: value for key, value in defaults.items() if keys.get(key) is None}

    def suited_to(self, architecture: Architecture) -> "Training":
        """Return the training of an architecture, with all settings of the optimizer that it needs."""
        texts = [str(part) for part in architecture.parts]
        layers = (
            [] if self.lr is not None else [published_optimization(part.OPTIMIZATION for part in architecture.parts)]
        )
        fitting = [each for name, each in self.families.items() if any(text.startswith(name) for text in texts)]
        return self.model_copy(update={**combined_keys(*layers, self, *fitting), "families": {}})


class FinalTraining(Section):
    """What follows the search: the recommended detector is trained to the end, and saved as ``best/``.

    Args:
        share: Part of a budget that is kept for it; without a budget it may take this part of the whole time.
        epochs: Passes over the training images, at most; as many of them as there is time for.
        repeats: Further trainings, with other seeds, of each detector that is recommended, which show how certain
            their order is; at most as many as fit into a third of the time that is left.
        scale_jitter: As in ``training``, of the training to the end; null for the search's.
        photometric: As in ``training``, of the training to the end; null for the search's.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    epochs: PositiveInt = 36
    repeats: NonNegativeInt = 2
    scale_jitter: ScaleJitter | None = None
    photometric: bool | None = None
