"""Sections of a recipe that say how an architecture is evaluated: data set, device and training."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from smnas_optuna.parts.section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section


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


Dataset = CocoDataset | VocDataset | BddDataset | DigitsDataset


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


class Training(Section):
    """How each architecture is trained: SGD with a cosine schedule.

    Args:
        epochs: Passes over the training split.
        batch_size: Images per step, over all GPUs of a trial; a multiple of ``device.gpus_per_trial``.
        lr: Highest learning rate.
        base_batch_size: Batch size that ``lr`` is meant for; the learning rate is scaled linearly to ``batch_size``.
            Null if ``lr`` is meant for ``batch_size``.
        final_lr: Learning rate at the end of the cosine schedule.
        momentum: Momentum of SGD, from 0 to below 1.
        weight_decay: Weight decay of SGD.
        warmup_iterations: Steps over which the learning rate rises linearly at the start.
        clip_gradients: Largest L2 norm of the gradient; null to not clip it.
        flip: Probability of a horizontal flip.
        weights: Initial weights of the backbones: ``imagenet``, ``none`` to train from scratch, or a file per backbone.
        amp: Train with automatic mixed precision; CUDA only.
        loader_workers: Processes that load images, per GPU; null for 2 on a CPU, and on GPUs for 2 to 8, depending on
            the number of cores.
        time_limit_minutes: Longest duration of a trial; null for no limit.
        seed: Seed of the weights' initialisation and of the shuffling of images.
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
    loader_workers: NonNegativeInt | None = None
    time_limit_minutes: PositiveFloat | None = None
    seed: NonNegativeInt = 0

    @property
    def scaled_lr(self) -> float:
        """The highest learning rate at this batch size (linear scaling rule, Goyal et al. 2017)."""
        return self.lr * self.batch_size / (self.base_batch_size or self.batch_size)
