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
from smnas_optuna.training.trial_folder import check_record

_QUALITY = 90
_IMAGES_OF_A_TRIAL = 3
_THRESHOLD_OF_A_TRIAL = 0.5


def draw(comparison: Comparison, _: Callable[[object], None]) -> None:
    """Draw trained detectors side by side.

    On the CPU: a search that goes on meanwhile may need all of its GPU's memory.

    Raises:
        UserError: There is no such image, the data set is gone, weights are another trial's, or the picture cannot be
            written.
    """
    from mmdet.apis import init_detector  # needs mmcv's operators, which smnas_optuna.detector.layers provides

    lock = DeviceLock.of("cpu", str(comparison.path))
    datasets = [_open_split(column.folder / "config.py") for column in comparison.columns]
    chosen, first = comparison.images, datasets[0]
    # Of one data set, so an index means the same image to all.
    indices = annotated_images(first, chosen) if isinstance(chosen, int) else named_images(first, chosen)
    images = [_load_present(first, index) for index in indices]
    panels = [_ground_truth_panel(first, indices)]
    for column, dataset in zip(comparison.columns, datasets, strict=True):
        weights = column.folder / "weights.pth"
        check_record(str(weights), load_trained(str(weights), weights)["meta"], column.belonging, column.architecture)
        model = init_detector(str(column.folder / "config.py"), str(weights), device="cpu")
        found = [detect(model, dataset, index, comparison.threshold, lock) for index in indices]
        panels.append(_panel_of_detections(column.title, column.architecture, found))
    picture = compose(images, panels)
    try:
        _save(picture, comparison.path)
    except OSError as error:
        raise UserError(f"--save {comparison.path}: cannot be written: {error.strerror or error}") from None


def draw_trained(model: Any, dataset: Any, title: str, text: str, path: Path, lock: DeviceLock) -> None:
    """Draw what a detector that has just been trained finds in a few images of a split.

    Args:
        model: An MMDetection detector in evaluation mode.
        dataset: The split, with the detector's test pipeline.
        title: Heads the column.
        text: Below the title.
        path: Of the picture, whose suffix tells its format.
        lock: Of the device that the model is on.

    Raises:
        OSError: An image cannot be read, or the picture not be written.
    """
    indices = annotated_images(dataset, _IMAGES_OF_A_TRIAL)
    found = [detect(model, dataset, index, _THRESHOLD_OF_A_TRIAL, lock) for index in indices]
    panels = [_ground_truth_panel(dataset, indices), _panel_of_detections(title, text, found)]
    _save(compose([_load(dataset, index) for index in indices], panels), path)


def annotated_images(dataset: Any, count: int) -> list[int]:
    """Return the indices of so many images with objects, spread over a split; fewer where it has no more.

    The same split gives the same images, whatever the detector.
    """
    chosen: list[int] = []
    for part in range(count):
        start = part * len(dataset) // count
        following = (index % len(dataset) for index in range(start, start + len(dataset)))
        chosen += next(([index] for index in following if index not in chosen and _has_objects(dataset, index)), [])
    return sorted(chosen)


def named_images(dataset: Any, names: Sequence[str]) -> list[int]:
    """Return the indices of images by their file names, as the split's annotations have them.

    Raises:
        UserError: There is no such image.
    """
    known = {_file_name(dataset, index): index for index in range(len(dataset))}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise UserError(f"--images {name}: no such image in {dataset.ann_file}; did you mean {near[0]}?")
    return [known[name] for name in names]


def ground_truth(dataset: Any, index: int) -> tuple[LabelledBox, ...]:
    """Return the objects of an image; a box around a crowd says that it is one."""
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
    """Return what a detector in evaluation mode finds in an image, the surest first.

    Args:
        model: An MMDetection detector.
        dataset: With the detector's test pipeline.
        index: Of the image.
        threshold: Lowest score, 0 to 1.
        lock: Of the device that the model is on, which is shared with others but not with one who times.
    """
    batch = pseudo_collate([dataset[index]])
    lock.join()
    try:
        with torch.inference_mode():
            found = model.test_step(batch)[0].pred_instances.cpu()
    finally:
        lock.leave()
    classes = dataset.metainfo["classes"]
    boxes = [
        LabelledBox(tuple(corners), label, classes[label], score)
        for corners, label, score in zip(
            found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True
        )
        if score >= threshold
    ]
    return tuple(sorted(boxes, key=lambda box: -(box.score or 0.0)))


def _ground_truth_panel(dataset: Any, indices: Sequence[int]) -> Panel:
    boxes = tuple(ground_truth(dataset, index) for index in indices)
    return Panel("ground truth", "", boxes, tuple(_file_name(dataset, index) for index in indices))


def _panel_of_detections(title: str, text: str, found: Sequence[tuple[LabelledBox, ...]]) -> Panel:
    captions = (f"{len(boxes) or 'no'} detection{'s' if len(boxes) != 1 else ''}" for boxes in found)
    return Panel(title, text, tuple(found), tuple(captions))


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
    """Load an image as the detector's pipeline does."""
    image: NDArray[np.uint8] = mmcv.imread(dataset.get_data_info(index)["img_path"], channel_order="rgb")
    return image


def _has_objects(dataset: Any, index: int) -> bool:
    return any(not instance["ignore_flag"] for instance in dataset.get_data_info(index)["instances"])


def _file_name(dataset: Any, index: int) -> str:
    path: str = dataset.get_data_info(index)["img_path"]
    return os.path.relpath(path, dataset.data_prefix["img"])


def _save(picture: Image.Image, path: Path) -> None:
    # Colours at full resolution, for the sake of thin lines and small letters; PNG takes no notice of either.
    picture.save(path, quality=_QUALITY, subsampling=0)
