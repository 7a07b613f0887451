"""Pre-training of a backbone: trains it as an image classifier with MMEngine's Runner.

The training recipe is the usual one for ImageNet (Goyal et al. 2017): random crops and flips, SGD with Nesterov
momentum, a learning rate in proportion to the batch size, and warm-up. The learning rate then falls to 0 along a cosine
(Loshchilov & Hutter 2017). Layers are those of the paper's final models (SM-NAS, section 4.1.2): batch normalisation,
no weight standardisation.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import DATASETS, METRICS, MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from smnas_optuna.detector import layers  # noqa: F401  # registers our layers and provides mmcv's operators
from smnas_optuna.errors import UserError
from smnas_optuna.parts.backbones.backbone import Backbone
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.levels import BACKBONE_LEVELS
from smnas_optuna.training.checkpoint import KeepCheckpoint, find_checkpoint, resume
from smnas_optuna.training.distributed import backend, is_first, is_launched, join, process_count, report_error_once
from smnas_optuna.training.runners import environment_config, hooks_config
from smnas_optuna.training.weights_file import write_weights

register_all_modules()

_BASE_BATCH = 256
_MOMENTUM = 0.9
_WEIGHT_DECAY = 1e-4
# Epochs of warm-up; a training of fewer than 50 epochs warms up for a tenth of its epochs.
_WARMUP_EPOCHS = 5
# Side of the centre crop as a share of the shorter side of a validation image.
_CENTRE_CROP = 224 / 256
_FILE_NAME = "backbone.pth"


@dataclass(frozen=True)
class Pretraining:
    """Settings of a pre-training.

    Args:
        backbone: Backbone to pre-train.
        data: Folder of ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``.
        classes: Names of the classes, sorted.
        epochs: Number of passes over the training images.
        batch_size: Images per step, summed over all processes.
        lr: Highest learning rate for a batch of 256 images; scaled in proportion to ``batch_size``.
        input_size: Side of the square crop, in pixels.
        workers: Number of processes that load images, for each training process.
        amp: Train in mixed precision.
        seed: Seed of the initial weights, the order of images and the crops.
        folder: Existing folder for logs, the checkpoint and the trained backbone.
    """

    backbone: Backbone
    data: Path
    classes: tuple[str, ...]
    epochs: int
    batch_size: int
    lr: float
    input_size: int
    workers: int
    amp: bool
    seed: int
    folder: Path

    def __str__(self) -> str:
        """The settings that a training must have in common with the one whose checkpoint it resumes from."""
        precision = "mixed" if self.amp else "float32"
        return (
            f"{self.backbone} on {len(self.classes)} classes at {self.input_size} pixels, {self.epochs} epochs, "
            f"batches of {self.batch_size}, lr {self.lr:g}, {precision} precision, seed {self.seed}"
        )


@dataclass(frozen=True)
class PretrainingResult:
    """Result of a pre-training.

    Args:
        file: File with the backbone's weights.
        top1: Top-1 accuracy on the validation images, in percent.
        top5: Top-5 accuracy on the validation images, in percent.
    """

    file: Path
    top1: float
    top5: float


def pretrain(pretraining: Pretraining, kind: str, *, from_checkpoint: bool) -> PretrainingResult:
    """Train a classifier, and save its backbone as ``backbone.pth``.

    Under ``torchrun``, call this function in each process. The tensors in the file have the names that they have in a
    detector's backbone, so the file can be the ``checkpoint`` of the backbone's ``init_cfg``. torch's safe loading can
    read it.

    Args:
        pretraining: The settings.
        kind: Kind of device to train on, ``cpu`` or ``cuda``.
        from_checkpoint: Resume from the checkpoint in the folder; if there is none, train from the beginning.

    Raises:
        UserError: The batch is larger than the number of training images, an image cannot be read, or the checkpoint
            is from a training with other settings.
    """
    with report_error_once():
        config = classification_config(pretraining, kind)
        if from_checkpoint and (checkpoint := find_checkpoint(pretraining.folder)):
            _check_checkpoint(checkpoint.file, pretraining)
            resume(config, checkpoint)
    if is_launched():
        join(config, kind)
    runner = Runner.from_cfg(config)
    runner.register_hook(KeepCheckpoint(pretraining.folder), priority="LOWEST")
    runner.train()
    # MMEngine's are NumPy numbers, which torch's safe loading refuses.
    top1, top5 = (float(runner.message_hub.get_scalar(f"val/accuracy/top{k}").current()) for k in (1, 5))
    result = PretrainingResult(pretraining.folder / _FILE_NAME, top1, top5)
    if is_first():
        _save_backbone(runner, pretraining, result)
    return result


def classification_config(pretraining: Pretraining, kind: str) -> Config:
    """Return the complete MMEngine config of a pre-training.

    Args:
        pretraining: The settings.
        kind: Kind of device to train on, ``cpu`` or ``cuda``.

    Raises:
        UserError: The batch is larger than the number of training images.
    """
    processes = process_count()
    images = len(ImageFolder(str(pretraining.data / "train")))
    epoch = images // pretraining.batch_size
    if not epoch:
        raise UserError(f"--batch-size {pretraining.batch_size}: expected no more than the {images} training images")
    total = pretraining.epochs * epoch
    warmup = round(min(_WARMUP_EPOCHS, pretraining.epochs / 10) * epoch)
    schedule: list[dict[str, Any]] = [
        {"type": "CosineAnnealingLR", "by_epoch": False, "begin": warmup, "end": total, "T_max": total - warmup}
    ]
    if warmup > 1:  # LinearLR needs at least two steps
        schedule.insert(0, {"type": "LinearLR", "by_epoch": False, "start_factor": 0.001, "end": warmup})
    return Config(
        {
            "default_scope": "mmdet",
            "model": classifier_config(pretraining.backbone, len(pretraining.classes)),
            "train_dataloader": _loader_config(pretraining, processes, kind, training=True),
            "val_dataloader": _loader_config(pretraining, processes, kind, training=False),
            "val_evaluator": {"type": "TopAccuracy"},
            "train_cfg": {"by_epoch": True, "max_epochs": pretraining.epochs},
            "val_cfg": {"type": "ValLoop"},
            "optim_wrapper": {
                "type": "AmpOptimWrapper" if pretraining.amp else "OptimWrapper",
                "optimizer": {
                    "type": "SGD",
                    "lr": pretraining.lr * pretraining.batch_size / _BASE_BATCH,
                    "momentum": _MOMENTUM,
                    "nesterov": True,
                    "weight_decay": _WEIGHT_DECAY,
                },
            },
            "param_scheduler": schedule,
            "default_hooks": hooks_config(),
            # Averages the batch normalisation's statistics, which each process computes from its own images.
            "custom_hooks": [{"type": "SyncBuffersHook"}, {"type": "CheckInvalidLossHook"}],
            "env_cfg": environment_config(backend(kind), cudnn_benchmark=True),
            "randomness": {"seed": pretraining.seed},
            "work_dir": str(pretraining.folder),
            "experiment_name": str(pretraining),
        },
        format_python_code=False,
    )


def classifier_config(backbone: Backbone, classes: int) -> dict[str, Any]:
    """Return the model config of a backbone with a classifier for ``classes`` classes."""
    layers_as_in_final_models = Detector(norm="BN", weight_standardization=False)
    last = BACKBONE_LEVELS[-1:]
    images = backbone.normalization
    preprocessing = {"mean": images["mean"], "std": images["std"], "rgb_to_bgr": not images["bgr_to_rgb"]}
    return {
        "type": "BackboneClassifier",
        "data_preprocessor": {"type": "mmengine.ImgDataPreprocessor", **preprocessing, "non_blocking": True},
        "backbone": backbone.config(last, layers_as_in_final_models),
        "channels": backbone.channels(last)[0],
        "classes": classes,
    }


def _loader_config(pretraining: Pretraining, processes: int, kind: str, *, training: bool) -> dict[str, Any]:
    return {
        "batch_size": pretraining.batch_size // processes,
        "num_workers": pretraining.workers,
        "persistent_workers": pretraining.workers > 0,
        "pin_memory": kind == "cuda",
        # Batch normalisation cannot compute statistics of a last batch of one image.
        "drop_last": training,
        "sampler": {"type": "DefaultSampler", "shuffle": training},
        "collate_fn": {"type": "default_collate"},
        "dataset": {
            "type": "LabelledImages",
            "root": str(pretraining.data / ("train" if training else "val")),
            "input_size": pretraining.input_size,
            "training": training,
        },
    }


@MODELS.register_module()
class BackboneClassifier(BaseModel):  # type: ignore[misc]  # mmengine is untyped
    """A backbone followed by global average pooling and a linear classifier.

    Args:
        backbone: Config of the backbone; only the last level is its output.
        channels: Channels of that level.
        classes: Number of classes.
        data_preprocessor: Config of the module that normalises images.
    """

    def __init__(
        self, backbone: dict[str, Any], channels: int, classes: int, data_preprocessor: dict[str, Any]
    ) -> None:
        super().__init__(data_preprocessor, init_cfg={"type": "Normal", "layer": "Linear", "std": 0.01})
        self.backbone = MODELS.build(backbone)
        self.fc = nn.Linear(channels, classes)

    def forward(self, inputs: Tensor, data_samples: Tensor | None = None, mode: str = "tensor") -> Any:
        """Return the scores of the classes, or the cross-entropy loss.

        Args:
            inputs: Normalised images, ``n x 3 x h x w``.
            data_samples: Labels of the images, ``n`` integers; only used for ``loss``.
            mode: ``tensor`` or ``predict`` for the scores (``n x classes``), ``loss`` for a dictionary with the loss.
        """
        scores = self.fc(self.backbone(inputs)[-1].mean((2, 3)))
        if mode != "loss":
            return scores
        assert data_samples is not None
        return {"loss": F.cross_entropy(scores, data_samples)}


@DATASETS.register_module()
class LabelledImages(ImageFolder):  # type: ignore[misc]  # torchvision is untyped
    """A data set with a folder of images for each class; its images are 8-bit RGB tensors.

    Args:
        root: Folder that contains the classes' folders.
        input_size: Side of the square crop, in pixels.
        training: Take a random crop and flip it at random; otherwise take the centre crop.
    """

    def __init__(self, root: str, input_size: int, *, training: bool) -> None:
        random = [v2.RandomResizedCrop(input_size), v2.RandomHorizontalFlip()]
        centre = [v2.Resize(round(input_size / _CENTRE_CROP)), v2.CenterCrop(input_size)]
        super().__init__(root, v2.Compose([*(random if training else centre), v2.PILToTensor()]), loader=_load_image)

    @property
    def metainfo(self) -> dict[str, Any]:
        """What MMEngine saves about the data set in checkpoints."""
        return {"classes": tuple(self.classes)}

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = super().__getitem__(index)
        return {"inputs": image, "data_samples": label}


class UnreadableImage(UserError):
    """An image cannot be decoded.

    A process that loads images passes an error on by constructing it again from the text of the traceback, so the
    constructor removes everything before the message.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.rpartition(f"{type(self).__name__}: ")[2].strip())


def _load_image(path: str) -> Any:
    try:
        return default_loader(path)
    except Exception as error:  # Pillow's decoders raise errors of many types
        raise UnreadableImage(f"--data {path}: not a readable image: {type(error).__name__}: {error}") from None


@METRICS.register_module()
class TopAccuracy(BaseMetric):  # type: ignore[misc]  # mmengine is untyped
    """Percentage of images whose class has the highest score (``top1``), or one of the five highest (``top5``)."""

    default_prefix = "accuracy"

    def __init__(self) -> None:
        # Collects results through the process group; "cpu" would need a file system that all machines share.
        super().__init__(collect_device="gpu")

    def process(self, data_batch: dict[str, Any], data_samples: list[Tensor]) -> None:
        """Record, for each image of a batch, the rank of the correct class, 1 for the highest score.

        Args:
            data_batch: Its ``data_samples`` are the labels of the batch, ``n`` integers.
            data_samples: Scores of the classes for each image, ``n`` tensors of ``classes`` numbers.
        """
        scores = torch.stack(list(data_samples)).float().cpu()
        right = scores.gather(1, data_batch["data_samples"].cpu()[:, None])
        # A class with an equal score, or NaN, ranks before the correct class.
        self.results.extend((~(scores < right)).sum(1).tolist())

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """Return ``top1`` and ``top5``, in percent."""
        return {f"top{k}": 100 * sum(rank <= k for rank in results) / len(results) for k in (1, 5)}


def _check_checkpoint(file: Path, pretraining: Pretraining) -> None:
    trained: str = torch.load(file, map_location="cpu", weights_only=True)["meta"]["experiment_name"]
    # MMEngine appends the time to the name.
    if not trained.startswith(f"{pretraining}_"):
        raise UserError(f"--resume: {file} belongs to another training: found {trained}, expected {pretraining}")


def _save_backbone(runner: Runner, pretraining: Pretraining, result: PretrainingResult) -> None:
    backbone = getattr(runner.model, "module", runner.model).backbone
    meta = {
        "code": str(pretraining.backbone),
        "classes": list(pretraining.classes),
        "top1": result.top1,
        "top5": result.top5,
        "epochs": pretraining.epochs,
        "input_size": pretraining.input_size,
    }
    weights = {name: tensor.cpu() for name, tensor in backbone.state_dict().items()}
    write_weights({"state_dict": weights, "meta": meta}, result.file)
