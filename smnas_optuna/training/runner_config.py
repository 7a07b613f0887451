"""The MMEngine config with which one architecture is trained and evaluated."""

from typing import Any

from mmengine.config import Config

from smnas_optuna.parts.model_config import custom_imports, model_config
from smnas_optuna.training import sparse_logging
from smnas_optuna.training.distributed import backend
from smnas_optuna.training.job import Job
from smnas_optuna.training.loaders import loader_config
from smnas_optuna.training.runners import environment_config, hooks_config
from smnas_optuna.training.scoring import search_metrics


def model_of(job: Job) -> dict[str, Any]:
    """Return the model config of a job's detector."""
    classes = len(job.dataset.classes)
    return model_config(job.architecture, classes=classes, detector=job.detector, weights=job.weights)


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
    imports["imports"].append(sparse_logging.__name__)
    # Together with pinned memory this lets the CPU continue while a batch is copied to the GPU.
    model["data_preprocessor"]["non_blocking"] = is_cuda
    scale = (architecture.input_size.width, architecture.input_size.height)
    load, annotate = {"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_bbox": True}
    resize: dict[str, Any] = {"type": "Resize", "scale": scale, "keep_ratio": True}
    meta_keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")

    flip = {"type": "RandomFlip", "prob": training.flip}
    schedule: list[dict[str, Any]] = [
        {
            "type": "CosineAnnealingLR",
            "eta_min": training.final_lr,
            "T_max": training.epochs,
            "end": training.epochs,
            "by_epoch": True,
            "convert_to_iter_based": True,
        }
    ]
    if training.warmup_iterations:
        end = training.warmup_iterations * parts
        warmup = {"type": "LinearLR", "start_factor": 0.001, "by_epoch": False, "end": end}
        schedule.insert(0, warmup)
    return Config(
        {
            "default_scope": "mmdet",
            "custom_imports": imports,
            "model": model,
            "train_dataloader": loader_config(
                dataset.train,
                dataset.classes,
                [load, annotate, resize, flip, {"type": "PackDetInputs"}],
                training=True,
                batch_size=training.batch_size // job.device.gpus_per_trial // parts,
                workers=job.loader_workers,
                pinned=is_cuda,
            ),
            "test_dataloader": loader_config(
                dataset.val,
                dataset.classes,
                # Annotations are loaded after resizing, since boxes are compared in pixels of the original image.
                [load, resize, annotate, {"type": "PackDetInputs", "meta_keys": meta_keys}],
                training=False,
                batch_size=1,
                workers=job.loader_workers,
                pinned=is_cuda,
            ),
            "test_evaluator": search_metrics(dataset),
            "train_cfg": {"by_epoch": True, "max_epochs": training.epochs},
            "test_cfg": {"type": "TestLoop"},
            "optim_wrapper": {
                "type": "SparseAmpOptimWrapper" if training.amp and is_cuda else "SparseOptimWrapper",
                "optimizer": {
                    "type": "SGD",
                    "lr": training.scaled_lr,
                    "momentum": training.momentum,
                    "weight_decay": training.weight_decay,
                    # A single kernel updates all weights. It does not know of steps that mixed precision skips after
                    # an overflow: if the first one is skipped, momentum starts from uninitialised memory.
                    "fused": is_cuda and not training.amp,
                },
                "clip_grad": {"max_norm": training.clip_gradients} if training.clip_gradients else None,
                "accumulative_counts": parts,
            },
            "param_scheduler": schedule,
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
