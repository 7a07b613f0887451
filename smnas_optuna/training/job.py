"""What is asked of a training process and what it tells while it works; knows neither torch nor Optuna."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from smnas_optuna.data.datasets import CheckedDataset
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.backbone import Backbone
from smnas_optuna.parts.detector import Detector
from smnas_optuna.recipe.recipe import Recipe, StageName
from smnas_optuna.recipe.settings import Device, Training
from smnas_optuna.training.outcome import Outcome


@dataclass(frozen=True)
class Belonging:
    """Which trial of which study a folder, a checkpoint or trained weights belong to.

    Args:
        study: Unique id of the study, its user attribute ``id``; "" for a study that has none.
        study_name: Name of the study.
        trial: Number of the trial.
        first_trial: Number of the trial that first attempted the architecture, if this one repeats interrupted ones;
            else the same.
    """

    study: str
    study_name: str
    trial: int
    first_trial: int


@dataclass(frozen=True)
class Job:
    """One architecture to be costed, trained, evaluated and timed.

    Args:
        architecture: What to build.
        dataset: What to train and validate on.
        detector: What all detectors of the search have in common.
        training: How to train.
        device: Where, and how to time.
        folder: For the config, the log and the checkpoint; made if absent.
        kind: Kind of device to train and time on, ``cpu`` or ``cuda``; see Target. The job fails as interrupted where
            CUDA is not available any more.
        gpus: Names of the GPUs to use, see ``timing/gpus.py``; None for those that the calling process sees.
        weights: Checkpoint that the backbone begins with, a URI or a file; None to train from scratch.
        loader_workers: Processes that load images, for each GPU.
        memory: Bytes that training may take on each GPU.
        belonging: The trial that this evaluates; None to keep no checkpoints and resume from none.
        former: Folders of the interrupted attempts that this one repeats, newest first. Training resumes from the
            first checkpoint there that belongs to the same study and architecture and was trained in the same way.
    """

    architecture: Architecture
    dataset: CheckedDataset
    detector: Detector
    training: Training
    device: Device
    folder: Path
    kind: str = field(kw_only=True)
    gpus: tuple[str, ...] | None = None
    weights: str | None = None
    loader_workers: int = 0
    memory: int = sys.maxsize
    belonging: Belonging | None = None
    former: tuple[Path, ...] = ()


@dataclass(frozen=True)
class PretrainedWeights:
    """Weights that a backbone is trained from.

    Args:
        backbone: Which backbone.
        checkpoint: A checkpoint's URI or file.
        key: The recipe's key that asks for them.
    """

    backbone: Backbone
    checkpoint: str
    key: str


@dataclass(frozen=True)
class Demand:
    """What a run needs to be there: the recipe's device, and the pre-trained weights of a stage's backbones.

    Args:
        recipe: The recipe.
        stage: The stage of it that is searched.
        weights: The weights.
        gpus: As of Job.
        sharing: Workers that use the device at the same time, each with a training of its own.
        workers: Workers on this machine.
    """

    recipe: Recipe
    stage: StageName
    weights: tuple[PretrainedWeights, ...] = ()
    gpus: tuple[str, ...] | None = None
    sharing: int = 1
    workers: int = 1


@dataclass(frozen=True)
class CostRequest:
    """Architectures to be costed only, as detectors of ``classes`` object classes."""

    architectures: tuple[Architecture, ...]
    classes: int
    detector: Detector


@dataclass(frozen=True)
class Column:
    """A trained detector in a comparison.

    Args:
        folder: Its trial's, with ``config.py`` and ``weights.pth``.
        title: Heads its column, in one line.
        architecture: Written below the title.
        belonging: The trial; weights that belong to another are refused.
    """

    folder: Path
    title: str
    architecture: str
    belonging: Belonging


@dataclass(frozen=True)
class Comparison:
    """Detectors of one data set, whose detections are to be drawn side by side beside the ground truth.

    Args:
        columns: The detectors.
        images: File names of validation images, or how many with objects to take, spread over the split.
        threshold: Lowest score, 0 to 1, of a detection that is drawn.
        path: Of the picture, whose suffix tells its format; absolute.
    """

    columns: tuple[Column, ...]
    images: tuple[str, ...] | int
    threshold: float
    path: Path


@dataclass(frozen=True)
class Costs:
    """What is known before training: multiply-adds at the padded input size, and parameters."""

    flops: int
    params: int


@dataclass(frozen=True)
class Memory:
    """What training is estimated to take.

    Args:
        bytes: On each GPU.
        parts: In how many equal parts a GPU's batch goes through the detector, see ``training/fitting.py``.
    """

    bytes: int
    parts: int


@dataclass(frozen=True)
class TooLarge:
    """The architecture is not trained, since training does not fit into memory.

    Args:
        images: That would have to go through it at once.
        needed: Bytes that this is estimated to take.
        usable: Bytes that it may take.
    """

    images: int
    needed: int
    usable: int


@dataclass(frozen=True)
class UntrainedLatency:
    """What is measured before training: inference time, in milliseconds, of one image in which nothing is found.

    Whatever a trained detector finds has to be post-processed on top, so its time will hardly be less.
    """

    milliseconds: float


@dataclass(frozen=True)
class Resumed:
    """Training goes on where an interrupted process has left a checkpoint: after so many epochs."""

    epochs: int


@dataclass(frozen=True)
class Progress:
    """An epoch's end: epochs done, of how many, and the epoch's mean loss."""

    epoch: int
    epochs: int
    loss: float


@dataclass(frozen=True)
class Scores:
    """What came of a trained architecture.

    Args:
        metrics: ``map``, ``map_50``, ``map_75``, ``map_small``, ``map_medium``, ``map_large``: COCO's mean average
            precisions, 0 to 1, or -1 where no such object is in the validation split.
        latency_ms: Median inference time of one image in milliseconds.
        latency_spread_ms: Interquartile range of the rounds' medians.
        train_seconds: Time spent training, with that of the attempts that training was resumed from.
        evaluation_seconds: Time spent on the validation split.
        timing_seconds: Time spent measuring inference time.
        gpu_busy_ms: Milliseconds for which the GPU computes or copies for one image; None on a CPU, or if unknown.
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
    """The architecture could not be evaluated; the reason is one line.

    Args:
        reason: Why, for people.
        outcome: What it means for the trial; ``INTERRUPTED`` where any other architecture would have failed as well,
            as on a full disk.
    """

    reason: str
    outcome: Outcome = Outcome.CRASHED


Event = Costs | Memory | TooLarge | UntrainedLatency | Resumed | Progress | Scores | Failure


@dataclass(frozen=True)
class Target:
    """The device that a search runs on.

    Args:
        kind: ``cpu`` or ``cuda``.
        name: Of the product.
        count: How many there are.
        memory: Bytes that the tensors of one training may take on each, with as much for every worker that shares it.
        conditions: What else may change a time, by name: ``driver``, ``torch``, ``precision``, ``power limit``.
        loader_workers: Processes that load images, for each GPU, of which the recipe says no number.
        gpus: Names of the GPUs to use, as Job takes them; None on a CPU.
        uuids: Unique identifiers of those GPUs.
        warning: What the user should know of the choice of this device, one line; empty if nothing.
    """

    kind: str
    name: str
    count: int
    memory: int
    conditions: dict[str, str]
    loader_workers: int = 2
    gpus: tuple[str, ...] | None = None
    uuids: tuple[str, ...] = ()
    warning: str = ""

    @property
    def identity(self) -> dict[str, str]:
        """Everything that two devices have to share for their times to be comparable."""
        return {"name": self.name, **self.conditions}
