"""Detections drawn beside the ground truth of validation images, as in Figs 9 to 11 of SM-NAS."""

import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from numpy.typing import NDArray
from PIL import Image

from smnas_optuna.errors import UserError
from smnas_optuna.timing.device_lock import DeviceLock
from smnas_optuna.training.checkpoint import load_trained
from smnas_optuna.training.job import Comparison
from smnas_optuna.training.picture import LabelledBox, Panel, compose
from smnas_optuna.training.trained import labelled_boxes
from smnas_optuna.training.trial_folder import check_record

_QUALITY = 90
_IMAGES_OF_A_TRIAL = 3
_THRESHOLD_OF_A_TRIAL = 0.5


def draw(comparison: Comparison, _: Callable[[object], None]) -> None:
    """Draw the detections of trained detectors side by side, and save the picture.

    Runs on the CPU, since a search that is running may need all of the GPU's memory.

    Args:
        comparison: Which detectors to draw, and where to save the picture.

    Raises:
        UserError: An image or the data set is absent, weights belong to another trial, or the picture cannot be
            written.
    """
    from mmdet.apis import init_detector  # needs mmcv's operators, which smnas_optuna.detector.layers provides

    lock = DeviceLock.of("cpu", str(comparison.path))
    datasets = [_open_split(column.folder / "config.py") for column in comparison.columns]
    requested, first = comparison.images, datasets[0]
    # All detectors have the same validation split, so an index is the same image for all of them.
    indices = annotated_images(first, requested) if isinstance(requested, int) else named_images(first, requested)
    images = [_load_present(first, index) for index in indices]
    panels = [_ground_truth_panel(first, indices)]
    for column, dataset in zip(comparison.columns, datasets, strict=True):
        weights = column.folder / "weights.pth"
        check_record(str(weights), load_trained(str(weights), weights)["meta"], column.identity, column.architecture)
        model = init_detector(str(column.folder / "config.py"), str(weights), device="cpu")
        detections = [detect(model, dataset, index, comparison.threshold, lock) for index in indices]
        panels.append(_panel_of_detections(column.title, column.architecture, detections))
    picture = compose(images, panels)
    try:
        _save(picture, comparison.path)
    except OSError as error:
        raise UserError(f"--save {comparison.path}: cannot be written: {error.strerror or error}") from None


def draw_trained(model: Any, dataset: Any, title: str, text: str, path: Path, lock: DeviceLock) -> None:
    """Draw the detections of a trained detector in a few images of a split beside the ground truth.

    Args:
        model: MMDetection detector in evaluation mode.
        dataset: The split, with the detector's test pipeline.
        title: Heading of the column with the detections, one line.
        text: Text below the heading.
        path: File to write; its suffix determines the format.
        lock: Lock of the device that the model is on.

    Raises:
        OSError: An image cannot be read, or the picture cannot be written.
    """
    indices = annotated_images(dataset, _IMAGES_OF_A_TRIAL)
    detections = [detect(model, dataset, index, _THRESHOLD_OF_A_TRIAL, lock) for index in indices]
    panels = [_ground_truth_panel(dataset, indices), _panel_of_detections(title, text, detections)]
    _save(compose([_load(dataset, index) for index in indices], panels), path)


def draw_beside_truth(model: Any, dataset: Any, index: int, threshold: float, path: Path, lock: DeviceLock) -> None:
    """Draw the detections in one image of a split beside the ground truth.

    Args:
        model: MMDetection detector in evaluation mode.
        dataset: The split, with the detector's test pipeline.
        index: Index of the image in the split.
        threshold: Lowest score of a detection that is drawn, 0 to 1.
        path: File to write; its suffix determines the format.
        lock: Lock of the device that the model is on.
    """
    detections = detect(model, dataset, index, threshold, lock)
    panels = [_ground_truth_panel(dataset, [index]), _panel_of_detections("detections", "", [detections])]
    _save(compose([_load(dataset, index)], panels), path)


def annotated_images(dataset: Any, count: int) -> list[int]:
    """Return the indices of ``count`` images with objects, spread over a split; fewer if the split has fewer.

    The result depends on the split alone, so all detectors are drawn on the same images.
    """
    chosen: list[int] = []
    for part in range(count):
        start = part * len(dataset) // count
        following = (index % len(dataset) for index in range(start, start + len(dataset)))
        chosen += next(([index] for index in following if index not in chosen and _has_objects(dataset, index)), [])
    return sorted(chosen)


def named_images(dataset: Any, names: Sequence[str]) -> list[int]:
    """Return the indices of the images with the given file names.

    Args:
        dataset: A split.
        names: File names as in the split's annotations.

    Raises:
        UserError: The split has no image of that name; the message suggests the most similar name.
    """
    known = {_file_name(dataset, index): index for index in range(len(dataset))}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise UserError(f"--images {name}: no such image in {dataset.ann_file}; did you mean {near[0]}?")
    return [known[name] for name in names]


def ground_truth(dataset: Any, index: int) -> tuple[LabelledBox, ...]:
    """Return the annotated objects of an image; the names of crowds end with ``(crowd)``."""
    classes = dataset.metainfo["classes"]
    return tuple(
        LabelledBox(
            tuple(instance["bbox"]),
            instance["bbox_label"],
            classes[instance["bbox_label"]] + (" (crowd)" if instance["ignore_flag"] else ""),
        )
        for instance in dataset.get_data_info(index)["instances"]
    )


def detect(model: Any, dataset: Any, index: int, threshold: float, lock: DeviceLock) -> tuple[LabelledBox, ...]:
    """Return the detections in an image, the highest score first.

    Args:
        model: MMDetection detector in evaluation mode.
        dataset: A split with the detector's test pipeline.
        index: Index of the image in the split.
        threshold: Lowest score of a detection that is returned, 0 to 1.
        lock: Lock of the device that the model is on.
    """
    (found,) = run_detector(model, pseudo_collate([dataset[index]]), lock)
    return tuple(labelled_boxes(found.pred_instances.cpu(), dataset.metainfo["classes"], threshold))


def run_detector(model: Any, batch: dict[str, Any], lock: DeviceLock) -> list[Any]:
    """Return MMDetection's samples with the detections in a batch.

    Args:
        model: MMDetection detector in evaluation mode.
        batch: A collated batch.
        lock: Lock of the device that the model is on. It is held in shared mode, so that no process times a detector
            on the device meanwhile.
    """
    lock.acquire_shared()
    try:
        with torch.inference_mode():
            samples: list[Any] = model.test_step(batch)
            return samples
    finally:
        lock.release_shared()


def _ground_truth_panel(dataset: Any, indices: Sequence[int]) -> Panel:
    boxes = tuple(ground_truth(dataset, index) for index in indices)
    return Panel("ground truth", "", boxes, tuple(_file_name(dataset, index) for index in indices))


def _panel_of_detections(title: str, text: str, detections: Sequence[tuple[LabelledBox, ...]]) -> Panel:
    captions = (f"{len(boxes) or 'no'} detection{'s' if len(boxes) != 1 else ''}" for boxes in detections)
    return Panel(title, text, tuple(detections), tuple(captions))


def _open_split(config_file: Path) -> Any:
    """Open the validation split that a trial's config names."""
    settings = Config.fromfile(config_file).test_dataloader.dataset
    if not Path(settings.ann_file).is_file():
        raise UserError(f"{settings.ann_file}: no such file; expected the validation split that {config_file} names")
    return DATASETS.build(settings)


def _load_present(dataset: Any, index: int) -> NDArray[np.uint8]:
    try:
        return _load(dataset, index)
    except OSError as error:
        path = dataset.get_data_info(index)["img_path"]
        raise UserError(f"{path}: cannot be read: {error.strerror}; {dataset.ann_file} lists it") from None


def _load(dataset: Any, index: int) -> NDArray[np.uint8]:
    """Load an image in the same way as the detector's pipeline."""
    image: NDArray[np.uint8] = mmcv.imread(dataset.get_data_info(index)["img_path"], channel_order="rgb")
    return image


def _has_objects(dataset: Any, index: int) -> bool:
    return any(not instance["ignore_flag"] for instance in dataset.get_data_info(index)["instances"])


def _file_name(dataset: Any, index: int) -> str:
    path: str = dataset.get_data_info(index)["img_path"]
    return os.path.relpath(path, dataset.data_prefix["img"])


def _save(picture: Image.Image, path: Path) -> None:
    # No chroma subsampling, which would blur thin lines and small letters. PNG ignores both options.
    picture.save(path, quality=_QUALITY, subsampling=0)
