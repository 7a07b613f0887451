"""Puts a trained detector into a folder of its own: config, weights, ONNX, and pictures of its detections."""

import multiprocessing
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS

from smnas_optuna.detector.onnx_model import export_onnx
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.timing.device import find_gpus
from smnas_optuna.timing.device_lock import DeviceLock
from smnas_optuna.training.checkpoint import load_trained
from smnas_optuna.training.drawing import annotated_images, draw_beside_truth, run_detector
from smnas_optuna.training.job import BestRequest, BestWritten
from smnas_optuna.training.trained import CONFIG, ONNX, WEIGHTS, init_trained
from smnas_optuna.training.trial_folder import check_record

_PICTURES = "pictures"
_CLASS_KEY = "coco/{}_precision"


def write_best(request: BestRequest, report: Callable[[BestWritten], None]) -> None:
    """Write config, weights, ONNX and pictures of a detector into a folder, and report what its card needs.

    Args:
        request: The detector and the folder.
        report: Called once, at the end.

    Raises:
        UserError: The weights are absent or belong to another trial, or the folder cannot be written.
    """
    # As in trainings. Otherwise locks that libraries make are left to Python's resource tracker, which warns of them.
    multiprocessing.set_start_method("fork", force=True)
    weights, folder = request.trial / WEIGHTS, request.folder
    trained = load_trained(str(weights), weights)
    check_record(str(weights), trained["meta"], request.identity, str(request.architecture))
    gpus = find_gpus().usable if request.device != "cpu" else ()
    kind = "cuda" if gpus else "cpu"
    if gpus:
        torch.cuda.set_device(gpus[0])
    lock = DeviceLock.of(kind, str(folder))
    try:
        shutil.copyfile(weights, folder / WEIGHTS)
        _plain_config(request.trial / CONFIG).dump(str(folder / CONFIG))
        (folder / _PICTURES).mkdir(exist_ok=True)
        model = init_trained(folder, kind)
        dataset = DATASETS.build(model.cfg.test_dataloader.dataset)
        classes = _evaluate(model, dataset, lock)
        pictures = _draw(model, dataset, request, lock)
        onnx = _export(request, trained)
    except OSError as error:
        raise UserError(f"--output {folder.parent}: cannot be written: {error.strerror or error}") from None
    report(BestWritten(classes, len(dataset), pictures, onnx, _licence(request.architecture)))


def _plain_config(file: Path) -> Config:
    """Return a trial's config without the files that its training started from."""
    config = Config.fromfile(file)
    config.load_from, config.resume = None, False
    config.model.pop("init_cfg", None)
    config.model.backbone.pop("init_cfg", None)
    return config


def _evaluate(model: Any, dataset: Any, lock: DeviceLock) -> dict[str, float]:
    """Return COCO's mean average precision of each class on a split."""
    metrics = [{**metric, "classwise": True} for metric in model.cfg.test_evaluator if metric.type == "CocoMetric"]
    evaluator = Evaluator(metrics)
    evaluator.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        batch = pseudo_collate([dataset[index]])
        evaluator.process(run_detector(model, batch, lock), batch)
    measured = evaluator.evaluate(len(dataset))
    # Without any detection CocoMetric returns nothing.
    return {name: float(measured.get(_CLASS_KEY.format(name), 0.0)) for name in dataset.metainfo["classes"]}


def _draw(model: Any, dataset: Any, request: BestRequest, lock: DeviceLock) -> tuple[str, ...]:
    """Draw detections beside the ground truth, in a picture for each of some images; return the pictures' paths."""
    paths = []
    for number, index in enumerate(annotated_images(dataset, request.pictures), 1):
        path = f"{_PICTURES}/{number:02}.jpg"
        draw_beside_truth(model, dataset, index, request.threshold, request.folder / path, lock)
        paths.append(path)
    return tuple(paths)


def _export(request: BestRequest, trained: dict[str, Any]) -> str:
    """Export the detector to ONNX; return why that is not possible, or an empty text."""
    try:
        export_onnx(request.architecture, request.detector, trained, request.folder / ONNX, portrait=False)
    except UserError as error:
        return str(error).removeprefix("--format onnx: ")
    except Exception as error:  # whatever the exporter may raise: the detector is there without it
        traceback.print_exc()
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return ""


def _licence(architecture: Architecture) -> str:
    """Say under which licence pre-trained weights of the backbone are published."""
    backbone = str(architecture.backbone)
    if backbone.startswith("timm:"):
        name = backbone.removeprefix("timm:")
        published = timm.get_pretrained_cfg(name)
        licence = published.license if published is not None else None
        return f"timm publishes weights of {name} under {licence or 'a licence that it does not name'}"
    return "torchvision publishes weights under BSD-3-Clause, MMDetection under Apache-2.0"
