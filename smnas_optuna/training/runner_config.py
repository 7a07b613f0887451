"""The MMEngine config with which one architecture is trained and evaluated."""

import math
from typing import Any

from mmengine.config import Config

from smnas_optuna.parts.model_config import custom_imports, model_config
from smnas_optuna.timing.device import amp_type
from smnas_optuna.training import optimizing, sparse_logging, transforms
from smnas_optuna.training.augmentation import ANNOTATE, LOAD, plain_epochs_hook, train_pipeline
from smnas_optuna.training.distributed import backend
from smnas_optuna.training.job import AutomaticWeights, Job
from smnas_optuna.training.loaders import loader_config
from smnas_optuna.training.optimizing import optimizer_config, schedule_config
from smnas_optuna.training.runners import environment_config, hooks_config
from smnas_optuna.training.scoring import search_metrics


def model_of(job: Job) -> dict[str, Any]:
    """Return the model config of a job's detector."""
    weights = job.weights
    assert not isinstance(weights, AutomaticWeights), "they have to be chosen before, see choose_weights"
    return model_config(
        job.architecture,
        classes=len(job.dataset.classes),
        detector=job.detector,
        weights=weights.checkpoint if weights else None,
        of_detector=weights is not None and weights.of_detector,
    )


def runner_config(job: Job, parts: int = 1) -> Config:
    """Return the complete MMEngine config that trains and evaluates a job.

    Args:
        job: The request.
        parts: Number of equal parts that each GPU's batch is split into. MMEngine counts each part as an iteration, so
            schedules of the learning rate have that many times more iterations.
    """
    training, architecture, dataset = job.training, job.architecture, job.dataset
    is_cuda = job.kind == "cuda"
    model = model_of(job)
    imports = custom_imports(architecture)
    imports["imports"] += [sparse_logging.__name__, optimizing.__name__, transforms.__name__]
    # Together with pinned memory this lets the CPU continue while a batch is copied to the GPU.
    model["data_preprocessor"]["non_blocking"] = is_cuda
    size = architecture.input_size
    resize: dict[str, Any] = {"type": "Resize", "scale": (size.width, size.height), "keep_ratio": True}
    meta_keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    steps = training.epochs * math.ceil(dataset.train_images / training.batch_size)
    hooks = [*plain_epochs_hook(training, size), *([{"type": "AverageWeights"}] if training.average_weights else [])]
    amp = training.amp and is_cuda
    # A single kernel that updates all weights does not know of steps that mixed precision skips after an overflow: if
    # the first one is skipped, momentum starts from uninitialised memory.
    optimizer = optimizer_config(training, training.batch_size, fused=is_cuda and not amp)
    return Config(
        {
            "default_scope": "mmdet",
            "custom_imports": imports,
            "model": model,
            "train_dataloader": loader_config(
                dataset.train,
                dataset.classes,
                train_pipeline(training, size),
                training=True,
                batch_size=training.batch_size // job.device.gpus_per_trial // parts,
                workers=job.loader_workers,
                pinned=is_cuda,
            ),
            "test_dataloader": loader_config(
                dataset.val,
                dataset.classes,
                # Annotations are loaded after resizing, since boxes are compared in pixels of the original image.
                [LOAD, resize, ANNOTATE, {"type": "PackDetInputs", "meta_keys": meta_keys}],
                training=False,
                batch_size=1,
                workers=job.loader_workers,
                pinned=is_cuda,
            ),
            "test_evaluator": search_metrics(dataset),
            "train_cfg": {"by_epoch": True, "max_epochs": training.epochs},
            "test_cfg": {"type": "TestLoop"},
            "optim_wrapper": {
                **({"type": "SparseAmpOptimWrapper", "dtype": amp_type()} if amp else {"type": "SparseOptimWrapper"}),
                **optimizer,
                "accumulative_counts": parts,
            },
            "param_scheduler": schedule_config(
                training, training.batch_size, epochs=training.epochs, steps=steps, parts=parts
            ),
            "custom_hooks": hooks,
            "default_hooks": hooks_config() | {"runtime_info": {"type": "SparseRuntimeInfoHook"}},
            "env_cfg": environment_config(backend(job.kind)),
            "find_unused_parameters": True,
            "randomness": {"seed": training.seed},
            "work_dir": str(job.folder),
            "experiment_name": job.folder.name,
        },
        # MMEngine writes a config six times; laying out its text prettily would take half a second each time.
        format_python_code=False,
    )
