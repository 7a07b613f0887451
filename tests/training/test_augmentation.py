"""What training images look like: sizes, boxes, and when mosaic and mixup end."""

from typing import Any

import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules
from pydantic import ValidationError

import smnas_optuna.detector.layers  # provides mmcv's operators
import smnas_optuna.training.transforms  # noqa: F401  # registers our transforms
from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.parts.architecture import InputSize
from smnas_optuna.recipe.settings import DigitsDataset, Training
from smnas_optuna.training.augmentation import plain_epochs_hook, train_pipeline
from smnas_optuna.training.loaders import loader_config

SIZE = InputSize(96, 72)


def training(**keys: Any) -> Training:
    return Training(epochs=30, batch_size=4, lr=0.1, **keys)


def samples(settings: Training, count: int = 24) -> list[Any]:
    register_all_modules()
    dataset = open_dataset(DigitsDataset(kind="digits", classes=3, train_images=8, val_images=4, width=128, height=96))
    pipeline = train_pipeline(settings, SIZE)
    loader = loader_config(dataset.train, dataset.classes, pipeline, training=True, batch_size=1, workers=0)
    built = DATASETS.build({**loader["dataset"], "_scope_": "mmdet"})
    np.random.seed(0)
    return [built[number % len(built)] for number in range(count)]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"scale_jitter": (0.5, 1.0)},
        {"scale_jitter": (0.5, 2.0), "photometric": True},
        {"mosaic": True},
        {"mosaic": True, "mixup": True, "photometric": True},
        {"mixup": True},
    ],
    ids=str,
)
def test_no_image_is_larger_than_the_input_size_and_boxes_lie_in_it(keys: dict[str, Any]) -> None:
    shapes = set()
    for sample in samples(training(**keys)):
        _, height, width = sample["inputs"].shape
        shapes.add((width, height))
        boxes = sample["data_samples"].gt_instances.bboxes.tensor
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= width + 1e-3).all()
        assert (boxes[:, 3] <= height + 1e-3).all()
    assert all(width <= SIZE.width and height <= SIZE.height for width, height in shapes)
    smallest = keys.get("scale_jitter", (1.0,))[0]
    assert (len(shapes) > 1) == (smallest < 1)


def test_an_enlarged_image_shows_a_part_with_fewer_or_larger_objects() -> None:
    plain, enlarged = samples(training()), samples(training(scale_jitter=(1.0, 3.0)))

    def median_side(drawn: list[Any]) -> float:
        boxes = np.concatenate([sample["data_samples"].gt_instances.bboxes.tensor.numpy() for sample in drawn])
        return float(np.median(boxes[:, 3] - boxes[:, 1]))

    assert median_side(enlarged) > 1.1 * median_side(plain)


def test_mosaic_and_mixup_end_before_the_last_epochs() -> None:
    assert plain_epochs_hook(training(scale_jitter=(0.5, 1.5)), SIZE) == []
    (hook,) = plain_epochs_hook(training(mosaic=True, mixup=True, scale_jitter=(0.5, 1.5)), SIZE)
    assert (hook["type"], hook["switch_epoch"]) == ("PipelineSwitchHook", 28)
    assert hook["switch_pipeline"] == train_pipeline(training(scale_jitter=(0.5, 1.5)), SIZE)
    (hook,) = plain_epochs_hook(training(mixup=True, plain_epochs=10), SIZE)
    assert hook["switch_epoch"] == 20


@pytest.mark.parametrize("jitter", [(0.5, 0.9), (1.1, 1.2), (0, 1), (0.5,)])
def test_an_impossible_jitter_is_refused(jitter: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError):
        training(scale_jitter=jitter)
