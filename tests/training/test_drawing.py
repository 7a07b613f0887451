import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image

import smnas_optuna.training.training  # noqa: F401  # registers what configs name
from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.timing.device_lock import DeviceLock
from smnas_optuna.training.drawing import annotated_images, detect, ground_truth, named_images
from smnas_optuna.training.job import Job, Scores
from smnas_optuna.training.picture import LabelledBox
from smnas_optuna.training.process import evaluate
from smnas_optuna.training.server import preload
from tests.conftest import TINY

# Images are 64x48, so the detector scales them by two.
ARCHITECTURE = Architecture.parse("128x96 ResNet18(w=8) FPN(P2-P4,c=16) RPN 2FC")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Job:
    """A finished job."""
    folder = tmp_path_factory.mktemp("drawing")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
    recipe = load_recipe(str(folder / "tiny.yaml"))
    stage = recipe.structural
    dataset = open_dataset(recipe.dataset)
    made = Job(ARCHITECTURE, dataset, stage.detector, stage.training, recipe.device, folder / "trial", kind="cpu")
    preload()
    assert isinstance(list(evaluate(made))[-1], Scores)
    return made


@pytest.fixture(scope="module")
def detector(job: Job) -> Any:
    from mmdet.apis import init_detector

    made = init_detector(str(job.folder / "config.py"), str(job.folder / "weights.pth"), device="cpu")
    # After one epoch no detection reaches the default threshold.
    made.roi_head.test_cfg.score_thr = 0.0
    return made


@pytest.fixture(scope="module")
def split(job: Job) -> Any:
    return DATASETS.build(Config.fromfile(job.folder / "config.py").test_dataloader.dataset)


def split_of(tmp_path: Path, objects: Sequence[int], *, crowd: bool = False) -> Any:
    """Create a split of one class with the given number of objects for each image; the image files are absent."""
    images = [
        {"id": number, "file_name": f"{number:03d}.png", "width": 64, "height": 48} for number in range(len(objects))
    ]
    annotations = [
        {"image_id": number, "category_id": 1, "bbox": [3, 5, 20, 30], "area": 600, "iscrowd": int(crowd)}
        for number, count in enumerate(objects)
        for _ in range(count)
    ]
    numbered = [{"id": number, **annotation} for number, annotation in enumerate(annotations, 1)]
    content = {"images": images, "annotations": numbered, "categories": [{"id": 1, "name": "cup"}]}
    (tmp_path / "val.json").write_text(json.dumps(content), encoding="utf-8")
    return DATASETS.build(
        {
            "type": "mmdet.CocoDataset",
            "metainfo": {"classes": ("cup",)},
            "ann_file": str(tmp_path / "val.json"),
            "data_prefix": {"img": str(tmp_path)},
            "test_mode": True,
        }
    )


def test_drawn_images_have_objects_and_are_spread_over_the_split(tmp_path: Path) -> None:
    split = split_of(tmp_path, [0, 0, 1, 2, 0, 1, 1, 0, 3, 1, 0, 1])
    assert annotated_images(split, 3) == [2, 5, 8]
    assert annotated_images(split, 1) == [2]
    assert annotated_images(split, 100) == [2, 3, 5, 6, 8, 9, 11]


def test_a_crowd_is_labelled_and_does_not_count_as_an_object(tmp_path: Path) -> None:
    split = split_of(tmp_path, [1, 1], crowd=True)
    assert annotated_images(split, 2) == []
    assert ground_truth(split, 0) == (LabelledBox((3, 5, 23, 35), 0, "cup (crowd)"),)


def test_images_are_found_by_name_and_a_wrong_name_suggests_the_nearest(tmp_path: Path) -> None:
    split = split_of(tmp_path, [1, 1, 1])
    assert named_images(split, ["002.png", "000.png"]) == [2, 0]
    with pytest.raises(UserError, match=r"^--images 02\.png: no such image in .*val\.json; did you mean 002\.png\?$"):
        named_images(split, ["001.png", "02.png"])


def test_the_ground_truth_is_what_the_annotations_say(job: Job, split: Any) -> None:
    content = json.loads(job.dataset.val.annotations.read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in content["categories"]}
    for index, image in enumerate(content["images"]):
        own = [annotation for annotation in content["annotations"] if annotation["image_id"] == image["id"]]
        expected = [
            ((x, y, x + width, y + height), names[annotation["category_id"]])
            for annotation in own
            for x, y, width, height in [annotation["bbox"]]
        ]
        assert [(box.corners, box.name) for box in ground_truth(split, index)] == expected


def test_detections_equal_those_of_mmdetection_in_pixels_of_the_original_image(
    job: Job, detector: Any, split: Any
) -> None:
    from mmdet.apis import inference_detector

    image = job.dataset.val.images / "000002.png"
    expected = inference_detector(detector, str(image)).pred_instances
    detections = detect(detector, split, 1, 0.0, DeviceLock.of("cpu", "a test"))
    assert len(detections) == len(expected.scores) > 0
    order = np.argsort(-expected.scores.numpy(), kind="stable")
    np.testing.assert_allclose([box.corners for box in detections], expected.bboxes.numpy()[order], atol=1e-3)
    assert [box.label for box in detections] == expected.labels.numpy()[order].tolist()
    corners = np.array([box.corners for box in detections])
    assert corners.min() >= 0
    assert 32 < corners[:, [0, 2]].max() <= 64
    assert 24 < corners[:, [1, 3]].max() <= 48

    scores = [box.score or 0.0 for box in detections]
    threshold = float(np.median(scores))
    likely = detect(detector, split, 1, threshold, DeviceLock.of("cpu", "a test"))
    assert [box.score for box in likely] == [score for score in scores if score >= threshold]


def test_each_trial_saves_a_picture_of_its_detections(job: Job) -> None:
    with Image.open(job.folder / "detections.jpg") as picture:
        assert picture.format == "JPEG"
        # Two columns, and three rows of images of 480x360.
        assert picture.width == 16 + 480 + 12 + 480 + 16
        assert 3 * 360 < picture.height < 3 * 360 + 200
    assert (job.folder / "detections.jpg").stat().st_size < 500_000


def test_a_picture_that_cannot_be_written_is_logged_and_does_not_fail_the_trial(job: Job, tmp_path: Path) -> None:
    (tmp_path / "detections.jpg").mkdir()
    assert isinstance(list(evaluate(replace(job, folder=tmp_path)))[-1], Scores)
    log = (tmp_path / "output.log").read_text(encoding="utf-8")
    assert "detections.jpg could not be drawn" in log
    assert "Is a directory" in log
