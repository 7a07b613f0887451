"""A found detector as one whole MMDetection config that trains it fully: the recipe of SM-NAS's final models.

The paper (section 4.1.2): batch normalisation without weight standardisation, the 2x schedule, SGD with a learning rate
of 0.04 for 32 images a step. Learning rates are those of that batch size; MMEngine scales them to the batch that a
training has.
"""

from typing import Any, Final

from mmengine.config import Config

from smnas_optuna.data.datasets import CheckedDataset
from smnas_optuna.detector import layers  # noqa: F401  # provides mmcv's operators, without which mmdet is not loaded
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.model_config import custom_imports, model_config
from smnas_optuna.training import checkpoint
from smnas_optuna.training.loaders import loader_config
from smnas_optuna.training.runners import environment_config, hooks_config
from smnas_optuna.training.scoring import final_metric

# Epochs, and after which of them the learning rate drops tenfold, as in MMDetection's schedules.
SCHEDULES: Final = {"1x": (12, (8, 11)), "2x": (24, (16, 22)), "3x": (36, (27, 33))}

_LEARNING_RATE = 0.04
_BASE_BATCH = 32
_IMAGES_PER_GPU = 4
_WORKERS = 2
_WARMUP_ITERATIONS = 500
# Sides of training images, as shares of the searched input size.
_JITTER = (0.8, 1.25)
_META_KEYS = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction")


def final_detector(detector: Detector) -> Detector:
    """Return what final models have in common where a search's detectors have this."""
    return detector.model_copy(update={"norm": "BN", "weight_standardization": False})


def final_config(
    architecture: Architecture,
    dataset: CheckedDataset,
    detector: Detector,
    *,
    schedule: str = "2x",
    flip: float = 0.5,
    weights: str | None = None,
) -> Config:
    """Return the config; MMDetection's ``tools/train.py`` and ``python -m smnas_optuna.train`` run it.

    Args:
        architecture: What to train.
        dataset: On what; its paths go into the config.
        detector: What the search's detectors had in common; its normalisation is replaced.
        schedule: One of ``SCHEDULES``.
        flip: Probability that a training image is mirrored.
        weights: Checkpoint that the backbone begins with, a URI or a file; None to train from scratch.
    """
    epochs, drops = SCHEDULES[schedule]
    imports = custom_imports(architecture)
    # With it torch also loads MMEngine's own checkpoints, from which MMDetection's tools resume.
    imports["imports"].append(checkpoint.__name__)
    scale = (architecture.input_size.width, architecture.input_size.height)
    learn: list[dict[str, Any]] = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "RandomResize", "scale": scale, "ratio_range": _JITTER, "keep_ratio": True},
        {"type": "RandomFlip", "prob": flip},
        {"type": "PackDetInputs"},
    ]
    test: list[dict[str, Any]] = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": scale, "keep_ratio": True},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "PackDetInputs", "meta_keys": _META_KEYS},
    ]
    evaluator, best = final_metric(dataset)
    train = loader_config(
        dataset.train, dataset.classes, learn, learn=True, batch_size=_IMAGES_PER_GPU, workers=_WORKERS
    )
    val = loader_config(dataset.val, dataset.classes, test, learn=False, batch_size=1, workers=_WORKERS)
    return Config(
        {
            "default_scope": "mmdet",
            "custom_imports": imports,
            "model": model_config(
                architecture, classes=len(dataset.classes), detector=final_detector(detector), weights=weights
            ),
            "train_dataloader": train,
            "val_dataloader": val,
            "test_dataloader": val,
            "val_evaluator": evaluator,
            "test_evaluator": evaluator,
            "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": epochs, "val_interval": 1},
            "val_cfg": {"type": "ValLoop"},
            "test_cfg": {"type": "TestLoop"},
            "optim_wrapper": {
                "type": "OptimWrapper",
                "optimizer": {"type": "SGD", "lr": _LEARNING_RATE, "momentum": 0.9, "weight_decay": 1e-4},
                "clip_grad": {"max_norm": 35, "norm_type": 2},
            },
            "auto_scale_lr": {"enable": True, "base_batch_size": _BASE_BATCH},
            "param_scheduler": [
                {
                    "type": "LinearLR",
                    "start_factor": 0.001,
                    "by_epoch": False,
                    "begin": 0,
                    "end": _WARMUP_ITERATIONS,
                },
                {
                    "type": "MultiStepLR",
                    "by_epoch": True,
                    "begin": 0,
                    "end": epochs,
                    "milestones": list(drops),
                    "gamma": 0.1,
                },
            ],
            "default_hooks": hooks_config(
                {"type": "CheckpointHook", "interval": 1, "max_keep_ckpts": 2, "save_best": best, "rule": "greater"}
            ),
            # Which of a detector's losses there are depends on what it finds in the images.
            "find_unused_parameters": True,
            "env_cfg": environment_config("nccl", cudnn_benchmark=False),
            "log_level": "INFO",
            "load_from": None,
            "resume": False,
            "randomness": {"seed": 0},
        }
    )


def coco_classes() -> tuple[str, ...]:
    """Return the names of COCO's 80 classes, in its order."""
    from mmdet.datasets import CocoDataset

    classes: tuple[str, ...] = CocoDataset.METAINFO["classes"]
    return classes
