"""The MMDetection config for the final training of a detector that a search has found.

Unless a detector's parts need others, the settings are those of the paper's final models (SM-NAS, section 4.1.2): batch
normalisation without weight standardisation, the 2x schedule, and SGD with a learning rate of 0.04 for a batch of 32
images. MMEngine scales the learning rate of SGD to the actual batch size. That of AdamW is for one GPU: it grows with
the square root of the number of GPUs, which MMEngine cannot do.
"""

from typing import Any, Final

from mmengine.config import Config

from smnas_optuna.data.datasets import CheckedDataset
from smnas_optuna.detector import layers  # noqa: F401  # provides mmcv's operators, without which mmdet is not loaded
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.model_config import custom_imports, model_config
from smnas_optuna.parts.optimization import Optimization, combine
from smnas_optuna.training import checkpoint, optimizing
from smnas_optuna.training.loaders import loader_config
from smnas_optuna.training.runners import environment_config, hooks_config
from smnas_optuna.training.scoring import final_metric

# Number of epochs, and the epochs after which the learning rate drops to a tenth, as in MMDetection's schedules.
SCHEDULES: Final = {"1x": (12, (8, 11)), "2x": (24, (16, 22)), "3x": (36, (27, 33))}

_BASE_BATCH = 32
_PAPERS = Optimization(
    optimizer="SGD",
    lr=0.04,
    base_batch_size=_BASE_BATCH,
    momentum=0.9,
    weight_decay=0.0001,
    warmup_iterations=500,
    clip_gradients=35,
)
# As RTMDet's.
_AVERAGE = {
    "type": "EMAHook",
    "ema_type": "ExpMomentumEMA",
    "momentum": 0.0002,
    "update_buffers": True,
    "priority": 49,
}
_IMAGES_PER_GPU = 4
_WORKERS = 2
# Range of the random scale of training images, relative to the architecture's input size.
_JITTER = (0.8, 1.25)
_META_KEYS = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction")


def final_detector(detector: Detector) -> Detector:
    """Return the detector settings for final training: those of the search with batch normalisation."""
    return detector.model_copy(update={"norm": "BN", "weight_standardization": False})


def final_config(
    architecture: Architecture,
    dataset: CheckedDataset,
    detector: Detector,
    *,
    schedule: str = "2x",
    flip: float = 0.5,
    optimization: Optimization = _PAPERS,
    weights: str | None = None,
) -> Config:
    """Return a complete config for MMDetection's ``tools/train.py`` or ``python -m smnas_optuna.train``.

    Args:
        architecture: Architecture to train.
        dataset: Data set to train and validate on; the config contains its paths.
        detector: Settings that all detectors of the search share; the normalisation is replaced.
        schedule: A key of ``SCHEDULES``.
        flip: Probability that a training image is flipped, 0 to 1.
        optimization: How weights are updated, where it is not as in the paper.
        weights: Pre-trained weights of the backbone, a URI or a file; None to train from scratch.
    """
    epochs, drops = SCHEDULES[schedule]
    optimization = combine(_PAPERS, optimization)
    scales = optimization.optimizer == "SGD"
    batch = _BASE_BATCH if scales else _IMAGES_PER_GPU
    imports = custom_imports(architecture)
    # Importing the first lets torch load MMEngine's checkpoints, from which MMDetection's tools resume.
    imports["imports"] += [checkpoint.__name__, optimizing.__name__]
    scale = (architecture.input_size.width, architecture.input_size.height)
    train_pipeline: list[dict[str, Any]] = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "RandomResize", "scale": scale, "ratio_range": _JITTER, "keep_ratio": True},
        {"type": "RandomFlip", "prob": flip},
        {"type": "PackDetInputs"},
    ]
    test_pipeline: list[dict[str, Any]] = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": scale, "keep_ratio": True},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "PackDetInputs", "meta_keys": _META_KEYS},
    ]
    evaluator, best = final_metric(dataset)
    train = loader_config(
        dataset.train, dataset.classes, train_pipeline, training=True, batch_size=_IMAGES_PER_GPU, workers=_WORKERS
    )
    val = loader_config(dataset.val, dataset.classes, test_pipeline, training=False, batch_size=1, workers=_WORKERS)
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
            "optim_wrapper": {"type": "OptimWrapper", **optimizing.optimizer_config(optimization, batch)},
            "auto_scale_lr": {"enable": scales, "base_batch_size": batch},
            "param_scheduler": [
                {
                    "type": "LinearLR",
                    "start_factor": 0.001,
                    "by_epoch": False,
                    "begin": 0,
                    "end": optimization.warmup_iterations,
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
            "custom_hooks": [_AVERAGE] if optimization.average_weights else [],
            # Some losses are absent when a batch has no positive proposals, so some parameters get no gradient.
            "find_unused_parameters": True,
            "env_cfg": environment_config("nccl", cudnn_benchmark=False),
            "log_level": "INFO",
            "load_from": None,
            "resume": False,
            "randomness": {"seed": 0},
        }
    )


def coco_classes() -> tuple[str, ...]:
    """Return the names of COCO's 80 classes, in COCO's order."""
    from mmdet.datasets import CocoDataset

    classes: tuple[str, ...] = CocoDataset.METAINFO["classes"]
    return classes
