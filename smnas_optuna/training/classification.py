"""Pre-training of a backbone: a classifier of labelled images, trained with MMEngine's Runner.

The recipe is the usual one for ImageNet (Goyal et al. 2017): random crops and mirroring, SGD with Nesterov's momentum
at a learning rate in proportion to the batch, warm-up, and since Loshchilov & Hutter (2017) a cosine down to 0. Layers
are those of the paper's final models (SM-NAS, section 4.1.2): batch normalisation, no weight standardisation.
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
from smnas_optuna.parts.model_config import NORMALIZATION
from smnas_optuna.training.checkpoint import KeepCheckpoint, find_checkpoint, resume
from smnas_optuna.training.distributed import backend, is_first, is_launched, join, process_count, told_once
from smnas_optuna.training.runners import environment_config, hooks_config
from smnas_optuna.training.weights_file import write_weights

register_all_modules()

_BASE_BATCH = 256
_MOMENTUM = 0.9
_WEIGHT_DECAY = 1e-4
# Epochs of warm-up, or a tenth of a short training.
_WARMUP_EPOCHS = 5
# Of the shorter side of a validation image, the share that is looked at.
_CENTRE = 224 / 256
_FILE = "backbone.pth"


@dataclass(frozen=True)
class Pretraining:
    """What to train and how.

    Args:
        backbone: The backbone to pre-train.
        data: Folder of ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``.
        classes: Their names, sorted.
        epochs: Passes over the training images.
        batch_size: Images of a step, over all processes.
        lr: Highest learning rate, for 256 images a step; scaled to the batch.
        input_size: Side of the square that is seen of an image, in pixels.
        workers: Processes that load images, for each process that trains.
        amp: Train in mixed precision.
        seed: Of weights, order and crops.
        folder: For logs, the checkpoint and at the end the backbone; exists.
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
        """All that a training has to have in common with the one whose checkpoint it goes on with."""
        precision = "mixed" if self.amp else "float32"
        return (
            f"{self.backbone} on {len(self.classes)} classes at {self.input_size} pixels, {self.epochs} epochs, "
            f"batches of {self.batch_size}, lr {self.lr:g}, {precision} precision, seed {self.seed}"
        )


@dataclass(frozen=True)
class Pretrained:
    """A backbone's file, and the percentages of validation images whose class is the first, or in the first five."""

    file: Path
    top1: float
    top5: float


def pretrain(pretraining: Pretraining, kind: str, *, go_on: bool) -> Pretrained:
    """Train a classifier, in each of the processes that torch's launcher may have started, and keep its backbone.

    The file has the backbone's tensors by the names that they have in a detector's, so that it can be the
    ``checkpoint`` of its ``init_cfg``, and is readable by torch's safe loading.

    Args:
        pretraining: What and how.
        kind: Of the device, ``cpu`` or ``cuda``.
        go_on: After the last epoch whose checkpoint is in the folder, if there is one.

    Raises:
        UserError: A batch has more images than there are, an image cannot be read, or the checkpoint is that of
            another training.
    """
    with told_once():
        config = classification_config(pretraining, kind)
        if go_on and (checkpoint := find_checkpoint(pretraining.folder)):
            _check_checkpoint(checkpoint.file, pretraining)
            resume(config, checkpoint)
    if is_launched():
        join(config, kind)
    runner = Runner.from_cfg(config)
    runner.register_hook(KeepCheckpoint(pretraining.folder), priority="LOWEST")
    runner.train()
    # MMEngine keeps numpy's numbers, which torch's safe loading refuses.
    top1, top5 = (float(runner.message_hub.get_scalar(f"val/accuracy/top{k}").current()) for k in (1, 5))
    done = Pretrained(pretraining.folder / _FILE, top1, top5)
    if is_first():
        _save_backbone(runner, pretraining, done)
    return done


def classification_config(pretraining: Pretraining, kind: str) -> Config:
    """Return the whole MMEngine config of a training on a kind of device, ``cpu`` or ``cuda``."""
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
    if warmup > 1:  # MMEngine's needs two steps
        schedule.insert(0, {"type": "LinearLR", "by_epoch": False, "start_factor": 0.001, "end": warmup})
    return Config(
        {
            "default_scope": "mmdet",
            "model": classifier_config(pretraining.backbone, len(pretraining.classes)),
            "train_dataloader": _loader_config(pretraining, processes, kind, learn=True),
            "val_dataloader": _loader_config(pretraining, processes, kind, learn=False),
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
            # Processes have statistics of their own images each until their mean is taken.
            "custom_hooks": [{"type": "SyncBuffersHook"}, {"type": "CheckInvalidLossHook"}],
            "env_cfg": environment_config(backend(kind), cudnn_benchmark=True),
            "randomness": {"seed": pretraining.seed},
            "work_dir": str(pretraining.folder),
            "experiment_name": str(pretraining),
        }
    )


def classifier_config(backbone: Backbone, classes: int) -> dict[str, Any]:
    """Return the config of a backbone's classifier of so many classes."""
    layers_as_in_final_models = Detector(norm="BN", weight_standardization=False)
    last = BACKBONE_LEVELS[-1:]
    return {
        "type": "BackboneClassifier",
        "data_preprocessor": {"type": "mmengine.ImgDataPreprocessor", **NORMALIZATION, "non_blocking": True},
        "backbone": backbone.config(last, layers_as_in_final_models),
        "channels": backbone.channels(last)[0],
        "classes": classes,
    }


def _loader_config(pretraining: Pretraining, processes: int, kind: str, *, learn: bool) -> dict[str, Any]:
    return {
        "batch_size": pretraining.batch_size // processes,
        "num_workers": pretraining.workers,
        "persistent_workers": pretraining.workers > 0,
        "pin_memory": kind == "cuda",
        # A last batch of one image would have no statistics.
        "drop_last": learn,
        "sampler": {"type": "DefaultSampler", "shuffle": learn},
        "collate_fn": {"type": "default_collate"},
        "dataset": {
            "type": "LabelledImages",
            "root": str(pretraining.data / ("train" if learn else "val")),
            "input_size": pretraining.input_size,
            "learn": learn,
        },
    }


@MODELS.register_module()
class BackboneClassifier(BaseModel):  # type: ignore[misc]  # mmengine is untyped
    """A backbone with global average pooling of its last level and a linear classifier.

    Args:
        backbone: Its config, which puts out the last level alone.
        channels: Of that level.
        classes: To tell apart.
        data_preprocessor: What normalises images.
    """

    def __init__(
        self, backbone: dict[str, Any], channels: int, classes: int, data_preprocessor: dict[str, Any]
    ) -> None:
        super().__init__(data_preprocessor, init_cfg={"type": "Normal", "layer": "Linear", "std": 0.01})
        self.backbone = MODELS.build(backbone)
        self.fc = nn.Linear(channels, classes)

    def forward(self, inputs: Tensor, data_samples: Tensor | None = None, mode: str = "tensor") -> Any:
        """Return the classes' scores of each image, or in the mode ``loss`` their cross-entropy.

        Args:
            inputs: ``n x 3 x h x w``, normalised.
            data_samples: The images' labels, ``n`` whole numbers.
            mode: ``tensor`` or ``predict`` (``n x classes``), or ``loss``.
        """
        scores = self.fc(self.backbone(inputs)[-1].mean((2, 3)))
        if mode != "loss":
            return scores
        assert data_samples is not None
        return {"loss": F.cross_entropy(scores, data_samples)}


@DATASETS.register_module()
class LabelledImages(ImageFolder):  # type: ignore[misc]  # torchvision is untyped
    """Images in a folder for each class, as 8-bit RGB tensors with their labels.

    Args:
        root: The folder of these folders.
        input_size: Side of the square that is taken of an image, in pixels.
        learn: For training: of random place, scale and aspect ratio, mirrored or not; else the centre.
    """

    def __init__(self, root: str, input_size: int, *, learn: bool) -> None:
        random = [v2.RandomResizedCrop(input_size), v2.RandomHorizontalFlip()]
        centre = [v2.Resize(round(input_size / _CENTRE)), v2.CenterCrop(input_size)]
        super().__init__(root, v2.Compose([*(random if learn else centre), v2.PILToTensor()]), loader=_load_image)

    @property
    def metainfo(self) -> dict[str, Any]:
        """What MMEngine notes of a data set in checkpoints."""
        return {"classes": tuple(self.classes)}

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = super().__getitem__(index)
        return {"inputs": image, "data_samples": label}


class UnreadableImage(UserError):
    """An image cannot be decoded. A process that loads images hands an error on within the text of its traceback."""

    def __init__(self, text: str) -> None:
        super().__init__(text.rpartition(f"{type(self).__name__}: ")[2].strip())


def _load_image(path: str) -> Any:
    try:
        return default_loader(path)
    except Exception as error:  # whatever a file system or one of Pillow's decoders may raise
        raise UnreadableImage(f"--data {path}: not a readable image: {type(error).__name__}: {error}") from None


@METRICS.register_module()
class TopAccuracy(BaseMetric):  # type: ignore[misc]  # mmengine is untyped
    """Percentage of images whose class has the highest score (``top1``), or one of the five highest (``top5``)."""

    default_prefix = "accuracy"

    def __init__(self) -> None:
        # By way of the processes' connection: machines need not share a file system.
        super().__init__(collect_device="gpu")

    def process(self, data_batch: dict[str, Any], data_samples: list[Tensor]) -> None:
        """Note how many classes score no lower than the right one, for each image of a batch.

        Args:
            data_batch: Has the labels, ``n``.
            data_samples: Scores of each image, ``n`` times ``classes``.
        """
        scores = torch.stack(list(data_samples)).float().cpu()
        right = scores.gather(1, data_batch["data_samples"].cpu()[:, None])
        # Neither equal scores nor those that are not numbers are a merit.
        self.results.extend((~(scores < right)).sum(1).tolist())

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """Return both percentages."""
        return {f"top{k}": 100 * sum(place <= k for place in results) / len(results) for k in (1, 5)}


def _check_checkpoint(file: Path, pretraining: Pretraining) -> None:
    begun: str = torch.load(file, map_location="cpu", weights_only=True)["meta"]["experiment_name"]
    # MMEngine has put the time behind it.
    if not begun.startswith(f"{pretraining}_"):
        raise UserError(f"--resume: {file} is of another training: found {begun}, expected {pretraining}")


def _save_backbone(runner: Runner, pretraining: Pretraining, done: Pretrained) -> None:
    backbone = getattr(runner.model, "module", runner.model).backbone
    meta = {
        "code": str(pretraining.backbone),
        "classes": list(pretraining.classes),
        "top1": done.top1,
        "top5": done.top5,
        "epochs": pretraining.epochs,
        "input_size": pretraining.input_size,
    }
    weights = {name: tensor.cpu() for name, tensor in backbone.state_dict().items()}
    write_weights({"state_dict": weights, "meta": meta}, done.file)
