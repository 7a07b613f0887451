"""Requests to a training process, and the events that it reports. Imports neither torch nor Optuna."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from smnas_optuna.data.datasets import CheckedDataset
from smnas_optuna.detector.pretrained import Pretrained
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.backbone import Backbone
from smnas_optuna.parts.detector import Detector
from smnas_optuna.recipe.recipe import Recipe, StageName
from smnas_optuna.recipe.settings import Device, Training
from smnas_optuna.training.outcome import Outcome


@dataclass(frozen=True)
class TrialIdentity:
    """Identifies the trial that a folder, a checkpoint or trained weights belong to.

    Args:
        study: Unique id of the study, from its user attribute ``id``; empty for studies of former versions.
        study_name: Name of the study.
        trial: Number of the trial.
        first_trial: If the trial is a retry of interrupted ones, the number of the first of them; otherwise the number
            of the trial.
    """

    study: str
    study_name: str
    trial: int
    first_trial: int


# What trials say that start from no weights.
SCRATCH = "scratch"


@dataclass(frozen=True)
class AutomaticWeights:
    """Request to start from the first pre-trained weights that are available; see ``training/initial_weights.py``.

    Args:
        folder: Folder with files of weights, or a single file; None for none.
        unreachable: Hosts from which nothing can be downloaded.
    """

    folder: Path | None = None
    unreachable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """Request to count the costs of an architecture, train it, evaluate it and time it.

    Args:
        architecture: Architecture to evaluate.
        dataset: Data set to train and validate on.
        detector: Settings that all detectors of the search share.
        training: Training settings of the recipe.
        device: Device and timing settings of the recipe.
        folder: Folder for the config, the log, the checkpoint and the weights; created if absent.
        kind: Kind of device to train and time on, ``cpu`` or ``cuda``, from :class:`Target`. If CUDA is no longer
            available, the job fails with the outcome ``interrupted``.
        gpus: Names of the GPUs to use, see ``timing/gpus.py``; None for those that are visible to the calling process.
        weights: Pre-trained weights to start from; None to train from scratch.
        loader_workers: Number of processes that load images, for each GPU.
        memory: Bytes that training may use on each GPU.
        identity: The trial that this job evaluates; None to save no checkpoints and resume from none.
        former: Folders of the interrupted trials that this one retries, newest first. Training resumes from the first
            checkpoint in them that belongs to the same study and architecture and was trained with the same settings.
    """

    architecture: Architecture
    dataset: CheckedDataset
    detector: Detector
    training: Training
    device: Device
    folder: Path
    kind: str = field(kw_only=True)
    gpus: tuple[str, ...] | None = None
    weights: Pretrained | AutomaticWeights | None = None
    loader_workers: int = 0
    memory: int = sys.maxsize
    identity: TrialIdentity | None = None
    former: tuple[Path, ...] = ()


@dataclass(frozen=True)
class PretrainedWeights:
    """Pre-trained weights of a backbone.

    Args:
        backbone: The backbone.
        checkpoint: URI or file of the weights.
        key: The recipe's key that requires the weights, for error messages, such as ``structural.training.weights``.
    """

    backbone: Backbone
    checkpoint: str
    key: str

    @property
    def pretrained(self) -> Pretrained:
        """The weights, with what reports call them."""
        file = Pretrained(self.checkpoint, "").file
        return Pretrained(self.checkpoint, f"file {file.name}" if file else "ImageNet")


@dataclass(frozen=True)
class DeviceRequest:
    """Request to choose the device of a worker, and to fetch pre-trained weights.

    Args:
        recipe: The recipe.
        stage: The stage that the run searches.
        weights: Weights to fetch and check.
        automatic: Where to look for weights that are not required; None if none are wanted.
        backbones: Backbones to look for them for.
        gpus: Names of the GPUs to use, see ``timing/gpus.py``; None for those that are visible to the calling process.
        sharing: Number of workers that train on the device at the same time.
        workers: Number of workers on this machine.
    """

    recipe: Recipe
    stage: StageName
    weights: tuple[PretrainedWeights, ...] = ()
    automatic: AutomaticWeights | None = None
    backbones: tuple[Backbone, ...] = ()
    gpus: tuple[str, ...] | None = None
    sharing: int = 1
    workers: int = 1


@dataclass(frozen=True)
class CostRequest:
    """Request to count the costs of architectures without training them.

    Args:
        architectures: The architectures.
        classes: Number of object classes.
        detector: Settings that all detectors share.
    """

    architectures: tuple[Architecture, ...]
    classes: int
    detector: Detector


@dataclass(frozen=True)
class WeightsRequest:
    """Request to say what architectures would start from.

    Args:
        architectures: The architectures.
        detector: Settings that all detectors share.
        weights: Where to look.
    """

    architectures: tuple[Architecture, ...]
    detector: Detector
    weights: AutomaticWeights


@dataclass(frozen=True)
class Machine:
    """A machine that a search is planned for.

    Args:
        kind: Kind of device, ``cpu`` or ``cuda``.
        name: Product name of the GPU or CPU.
        gpus: Number of GPUs; 0 if the CPU is used.
        memory_gb: Memory in GiB, of each GPU or of the machine.
        cores: Number of cores.
    """

    kind: str
    name: str
    gpus: int
    memory_gb: float
    cores: int

    def __str__(self) -> str:
        if self.gpus:
            return f"{self.gpus} x {self.name}, {self.memory_gb:.0f} GiB each"
        return f"{self.name}, {self.cores} cores, {self.memory_gb:.0f} GiB"


@dataclass(frozen=True)
class SpeedRequest:
    """Request to measure how fast architectures train.

    Args:
        architectures: The architectures.
        classes: Number of object classes.
        detector: Settings that all detectors share.
        kind: Kind of device, ``cpu`` or ``cuda``.
        batch_size: Images per step.
        seconds: Seconds to measure each architecture for.
    """

    architectures: tuple[Architecture, ...]
    classes: int
    detector: Detector
    kind: str
    batch_size: int
    seconds: float = 2.0


@dataclass(frozen=True)
class Column:
    """A trained detector, drawn as a column of a comparison.

    Args:
        folder: Folder of the detector's trial, with ``config.py`` and ``weights.pth``.
        title: Heading of the column, one line.
        architecture: Text below the heading.
        identity: The detector's trial; weights that belong to another trial are refused.
    """

    folder: Path
    title: str
    architecture: str
    identity: TrialIdentity


@dataclass(frozen=True)
class Comparison:
    """Request to draw the detections of several detectors beside the ground truth.

    Args:
        columns: The detectors, all trained on the same data set.
        images: File names of validation images, or the number of images with objects to choose, spread over the split.
        threshold: Lowest score of a detection that is drawn, 0 to 1.
        path: Absolute path of the picture to write; the suffix determines the format.
    """

    columns: tuple[Column, ...]
    images: tuple[str, ...] | int
    threshold: float
    path: Path


@dataclass(frozen=True)
class BestRequest:
    """Request to put a trained detector into a folder of its own.

    Args:
        trial: Folder of the detector's trial, with ``config.py`` and ``weights.pth``.
        identity: The trial; weights that belong to another one are refused.
        architecture: The detector's architecture.
        detector: Settings that all detectors of the search share.
        device: Kind of device to evaluate on, as the recipe names it: ``auto``, ``cpu`` or ``cuda``.
        folder: Existing folder to write to.
        pictures: Number of validation images to draw detections in.
        threshold: Lowest score of a detection that is drawn, 0 to 1.
    """

    trial: Path
    identity: TrialIdentity
    architecture: Architecture
    detector: Detector
    device: str
    folder: Path
    pictures: int = 16
    threshold: float = 0.5


@dataclass(frozen=True)
class BestWritten:
    """A trained detector was put into a folder of its own.

    Args:
        classes: COCO's mean average precision of each class, 0 to 1; NaN without such objects.
        val_images: Number of validation images.
        pictures: Paths of the pictures, relative to the folder.
        onnx: Why there is no ONNX file; empty if there is one.
        licence: Licence of the weights that published ones of this backbone have, in words.
    """

    classes: dict[str, float]
    val_images: int
    pictures: tuple[str, ...]
    onnx: str
    licence: str


@dataclass(frozen=True)
class Initialised:
    """What training starts from.

    Args:
        weights: Where the weights are from, such as ``ImageNet``; ``SCRATCH`` if they are random.
    """

    weights: str


@dataclass(frozen=True)
class Costs:
    """Costs that are counted before training.

    Args:
        flops: Multiply-adds for one image of the padded input size.
        params: Number of parameters.
    """

    flops: int
    params: int


@dataclass(frozen=True)
class Memory:
    """Memory that training is estimated to use.

    Args:
        bytes: Bytes on each GPU.
        parts: Number of equal parts that each GPU's batch is split into, see ``training/fitting.py``.
    """

    bytes: int
    parts: int


@dataclass(frozen=True)
class TooLarge:
    """The architecture is not trained, because training would not fit into memory.

    Args:
        images: Number of images in the smallest part that the batch can be split into.
        needed: Bytes that training on such a part is estimated to use.
        usable: Bytes that training may use.
    """

    images: int
    needed: int
    usable: int


@dataclass(frozen=True)
class UntrainedLatency:
    """Inference time of the untrained detector for one image without detections, in milliseconds.

    It is hardly more than the trained detector's time, which adds the post-processing of detections.
    """

    milliseconds: float


@dataclass(frozen=True)
class Resumed:
    """Training resumes from the checkpoint of an interrupted trial, after ``epochs`` epochs."""

    epochs: int


@dataclass(frozen=True)
class Progress:
    """An epoch has ended.

    Args:
        epoch: Number of epochs trained so far.
        epochs: Number of epochs in total.
        loss: Mean loss of the epoch.
    """

    epoch: int
    epochs: int
    loss: float


@dataclass(frozen=True)
class Scores:
    """Results of a trained architecture.

    Args:
        metrics: COCO's mean average precisions ``map``, ``map_50``, ``map_75``, ``map_small``, ``map_medium`` and
            ``map_large``, 0 to 1; -1 if the validation split has no such objects.
        latency_ms: Median inference time for one image, in milliseconds.
        latency_spread_ms: Interquartile range of the medians of the timing rounds, in milliseconds.
        train_seconds: Time spent on training, including that of the interrupted trials that training resumed from.
        evaluation_seconds: Time spent on evaluating the validation split.
        timing_seconds: Time spent on measuring inference time.
        gpu_busy_ms: Milliseconds for which the GPU is busy with one image; None on a CPU, or if it cannot be measured.
    """

    metrics: dict[str, float]
    latency_ms: float
    latency_spread_ms: float
    train_seconds: float
    evaluation_seconds: float
    timing_seconds: float
    gpu_busy_ms: float | None = None


@dataclass(frozen=True)
class Failure:
    """The architecture could not be evaluated.

    Args:
        reason: One line for people to read.
        outcome: Outcome of the trial; ``INTERRUPTED`` if any other architecture would have failed as well, such as on
            a full disk.
    """

    reason: str
    outcome: Outcome = Outcome.CRASHED


Event = Initialised | Costs | Memory | TooLarge | UntrainedLatency | Resumed | Progress | Scores | Failure


@dataclass(frozen=True)
class Target:
    """The device that a worker trains and times on: one or several GPUs of a kind, or the CPU.

    Args:
        kind: Kind of device, ``cpu`` or ``cuda``.
        name: Product name of the GPU or CPU.
        count: Number of GPUs; 1 for the CPU.
        memory: Bytes that the tensors of one training may use on each GPU, if all workers that share it train.
        conditions: Everything else that may change a time, by name: ``driver``, ``torch``, ``precision``,
            ``power limit``.
        loader_workers: Number of processes that load images, for each GPU, if the recipe does not set it.
        gpus: Names of the GPUs to use, see :class:`Job`; None on a CPU.
        uuids: Unique ids of these GPUs.
        unreachable: Hosts from which no pre-trained weights can be downloaded.
        warnings: Warnings for the user about the device and about weights, one line each.
    """

    kind: str
    name: str
    count: int
    memory: int
    conditions: dict[str, str]
    loader_workers: int = 2
    gpus: tuple[str, ...] | None = None
    uuids: tuple[str, ...] = ()
    unreachable: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, str]:
        """Properties that two devices must have in common for their times to be comparable."""
        return {"name": self.name, **self.conditions}
