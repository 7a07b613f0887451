"""Settings: what a recipe says of one evaluation, its data set, device and training."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from smnas_optuna.parts.section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section


class Split(Section):
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


class CocoDataset(Section):
    """Images with boxes in COCO's json format; the class names are the json's categories."""

    kind: Literal["coco"] = "coco"
    root: Path = Path()
    train: Split
    val: Split


class DigitsDataset(Section):
    """Scenes composed of scikit-learn's handwritten digits, made on first use; see ``data/digits.py``.

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


class VocDataset(Section):
    """Images with boxes in Pascal VOC's XML format; see ``data/voc.py``.

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
        images: Validation images timed, one at a time.
        warmup: Images run before, untimed.
        rounds: Times that the timed images are gone through; the spread is that of the rounds' medians.
        spread_limit: Largest spread, as a share of the time, with which a measurement is taken as it is.
        attempts: Measurements at the most; of several the one with the least spread counts.
        compiled: Time layers as torch.compile compiles them, on a GPU with CUDA graphs. Otherwise the time of a small
            detector on a fast GPU is that of Python. Only images of the commonest size are timed then. It takes a
            minute or more per trial.
    """

    images: PositiveInt = 100
    warmup: PositiveInt = 20
    rounds: Annotated[int, Field(ge=2)] = 5
    spread_limit: PositiveFloat = 0.1
    attempts: PositiveInt = 3
    compiled: bool = False


class Device(Section):
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


class Training(Section):
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
        loader_workers: Processes that load images, per GPU; null for 2 on a CPU, and on GPUs for what the cores allow,
            2 to 8.
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
    loader_workers: NonNegativeInt | None = None
    time_limit_minutes: PositiveFloat | None = None
    seed: NonNegativeInt = 0

    @property
    def scaled_lr(self) -> float:
        """The highest learning rate at this batch size (linear scaling rule, Goyal et al. 2017)."""
        return self.lr * self.batch_size / (self.base_batch_size or self.batch_size)
