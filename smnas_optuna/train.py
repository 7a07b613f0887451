"""``python -m smnas_optuna.train``: train a detector from an exported config, on GPUs or a CPU."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from smnas_optuna.command_line import run_command, writable_folder
from smnas_optuna.errors import UserError
from smnas_optuna.training.distributed import is_first, is_launched, join, report_error_once
from smnas_optuna.training.scoring import FINAL_PRECISIONS

# Keys of a config that MMEngine's Runner needs to train.
_REQUIRED_KEYS = ("model", "train_dataloader", "train_cfg", "optim_wrapper")
# Data loaders that training uses; the data of test_dataloader may be absent.
_LOADERS = ("train_dataloader", "val_dataloader")


def train(
    config: Annotated[Path, typer.Argument(help="MMDetection config, such as one that export has written.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for logs and checkpoints; work_dirs/CONFIG if not given.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last checkpoint in the folder.")] = False,
    amp: Annotated[bool, typer.Option("--amp", help="Train in mixed precision.")] = False,
) -> None:
    """Train the detector of CONFIG with the config's settings, and print its mAP.

    On several GPUs: torchrun --nproc-per-node 8 -m smnas_optuna.train CONFIG
    """
    with report_error_once():
        if not config.is_file():
            raise UserError(f"CONFIG {config}: no such file; expected one that smnas_optuna.export has written")
        loaded = _read(config)
        _check(config, loaded)
        from smnas_optuna.timing.device import kind_of_device  # imports torch, so only after the arguments are checked

        kind = kind_of_device(amp=amp)
        folder = output or Path("work_dirs") / config.stem
        writable_folder(folder)
    loaded.work_dir = str(folder)
    loaded.resume = resume
    if amp:
        loaded.optim_wrapper.type = "AmpOptimWrapper"
    if is_launched():
        join(loaded, kind)
    from mmengine.runner import Runner

    import smnas_optuna.training.checkpoint  # lets torch load MMEngine's checkpoints  # noqa: F401

    runner = Runner.from_cfg(loaded)
    runner.train()
    scalars = runner.message_hub.log_scalars
    measured = [(name, f"val/{key}") for key, name in FINAL_PRECISIONS.items() if f"val/{key}" in scalars]
    # CocoMetric returns no results for a detector without any detections.
    scores = ", ".join(f"{name} {scalars[key].current():.3f}" for name, key in measured) or "no detections, so no mAP,"
    if is_first():
        print(f"{scores} after {runner.epoch} epochs; checkpoints are in {loaded.work_dir}")


def _read(config: Path) -> Any:
    """Read an MMEngine config, and register MMDetection's modules so that it can be built; raises UserError."""
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    import smnas_optuna.detector.layers  # before mmdet: provides mmcv's operators  # noqa: F401

    register_all_modules()
    try:
        return Config.fromfile(str(config), format_python_code=False)
    except Exception as error:  # a config is a program, which may raise errors of any type
        raise UserError(f"CONFIG {config}: cannot be read: {type(error).__name__}: {error}") from None


def _check(config: Path, loaded: Any) -> None:
    """Raise UserError if a config lacks a key that training needs, or names files that do not exist."""
    for key in _REQUIRED_KEYS:
        if not isinstance(loaded.get(key), dict):
            raise UserError(f"CONFIG {config}: has no {key}; expected a training config, such as export writes")
    for place, path, kind in _named_data(config, loaded):
        exists = os.path.isdir(path) if kind == "folder" else os.path.isfile(path)
        if not exists and "://" not in path:
            raise UserError(f"CONFIG {config}: {place} {path}: no such {kind}; expected {_expected(place)}")


def _expected(place: str) -> str:
    if place.startswith("model"):
        return "the weights there, or a config that export has written with --weights FILE"
    return "the data set there, or a config that export has written with --data RECIPE --set dataset.root=FOLDER"


def _named_data(config: Path, loaded: Any) -> Iterator[tuple[str, str, Literal["file", "folder"]]]:
    """Yield the files and folders that training reads: the key that names each, its path and its kind.

    Data that one of MMEngine's file backends fetches from elsewhere are left out.
    """
    for name in _LOADERS:
        if loaded.get(name) is None:  # a training may do without validation
            continue
        for place, dataset in _datasets(config, f"{name}.dataset", loaded[name].get("dataset")):
            if dataset.get("backend_args"):
                continue
            root = str(dataset.get("data_root") or "")
            annotations, images = dataset.get("ann_file"), (dataset.get("data_prefix") or {}).get("img")
            if annotations:
                yield f"{place}.ann_file", os.path.join(root, str(annotations)), "file"
            if root or images:
                yield f"{place}.data_prefix.img", os.path.join(root, str(images or "")), "folder"
    weights = (loaded.model.get("backbone") or {}).get("init_cfg") or {}
    if isinstance(weights, dict) and weights.get("checkpoint"):
        yield "model.backbone.init_cfg.checkpoint", str(weights["checkpoint"]), "file"
    metrics = loaded.get("val_evaluator") or ()
    for metric in [metrics] if isinstance(metrics, dict) else metrics:
        if metric.get("ann_file") and not metric.get("backend_args"):
            yield "val_evaluator.ann_file", str(metric["ann_file"]), "file"


def _datasets(config: Path, place: str, dataset: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the key and the config of a data set, and of those that it wraps, as RepeatDataset does."""
    if not isinstance(dataset, dict):
        raise UserError(f"CONFIG {config}: has no {place}; expected a training config, such as export writes")
    yield place, dataset
    if "dataset" in dataset:
        yield from _datasets(config, f"{place}.dataset", dataset["dataset"])
    for number, part in enumerate(dataset.get("datasets", ())):
        yield from _datasets(config, f"{place}.datasets[{number}]", part)


if __name__ == "__main__":
    sys.exit(run_command(train, "train"))
