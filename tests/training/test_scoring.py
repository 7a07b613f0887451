import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, METRICS
from mmdet.utils import register_all_modules
from mmengine.structures import InstanceData

import smnas_optuna.detector.layers  # noqa: F401  # provides mmcv's operators
from smnas_optuna.data.datasets import CheckedDataset, open_dataset
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.recipe.settings import VocDataset
from smnas_optuna.training.job import Job, Scores
from smnas_optuna.training.loaders import loader_config
from smnas_optuna.training.process import evaluate
from smnas_optuna.training.scoring import final_metric, precisions, search_metrics
from smnas_optuna.training.server import preload
from tests.published_formats import Thing, write_voc

# A detection: image, class, corners (left, top, right, bottom; counted from 0) and score.
Detection = tuple[str, str, float, float, float, float, float]
ARCHITECTURE = Architecture.parse("64x48 ResNet18(w=8) FPN(P2-P4,c=16) RPN 2FC")
TEST_PIPELINE: list[dict[str, Any]] = [
    {"type": "LoadImageFromFile"},
    {"type": "Resize", "scale": (32, 24), "keep_ratio": True},
    {"type": "LoadAnnotations", "with_bbox": True},
    {"type": "PackDetInputs"},
]


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    register_all_modules()


def opened(root: Path, images: Mapping[str, Sequence[Thing]], year: int = 2007) -> CheckedDataset:
    """Write images and annotations in VOC's format, and open them as training and validation split."""
    write_voc(root, f"VOC{year}/train", images)
    write_voc(root, f"VOC{year}/val", images)
    splits = {"train": [f"VOC{year}/train"], "val": [f"VOC{year}/val"]}
    return open_dataset(VocDataset.model_validate({"kind": "voc", "root": root, **splits}))


def measure(dataset: Any, metrics: Sequence[Mapping[str, Any]], detections: Sequence[Detection]) -> dict[str, float]:
    """Return what MMDetection's metrics measure for detections on a data set."""
    classes = dataset.metainfo["classes"]
    measured: dict[str, float] = {}
    for config in metrics:
        metric = METRICS.build(dict(config))
        metric.dataset_meta = dataset.metainfo
        for index in range(len(dataset)):
            sample = dataset[index]["data_samples"]
            own = [found for found in detections if found[0] == Path(sample.img_path).stem]
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor([found[2:6] for found in own], dtype=torch.float32).reshape(-1, 4),
                labels=torch.tensor([classes.index(found[1]) for found in own], dtype=torch.int64),
                scores=torch.tensor([found[6] for found in own]),
            )
            metric.process({}, [sample.to_dict()])
        measured |= metric.evaluate(size=len(dataset))
    return measured


def our_split(checked: CheckedDataset) -> Any:
    config = loader_config(checked.val, checked.classes, TEST_PIPELINE, training=False, batch_size=1, workers=0)
    with contextlib.redirect_stdout(io.StringIO()):
        return DATASETS.build({**config["dataset"], "_scope_": "mmdet"})


def mmdetections_split(root: Path, folder: str) -> Any:
    return DATASETS.build(
        {
            "type": "mmdet.VOCDataset",
            "data_root": str(root),
            "ann_file": f"{folder}/ImageSets/Main/val.txt",
            "data_prefix": {"sub_data_root": f"{folder}/"},
            "test_mode": True,
            "pipeline": TEST_PIPELINE,
        }
    )


# By descending score: a true positive, a duplicate of it, a difficult object, a false positive, a true positive.
BY_HAND = {
    "one": [Thing("dog", (5, 5, 24, 24)), Thing("dog", (35, 5, 54, 24), difficult=True)],
    "two": [Thing("dog", (11, 11, 40, 40))],
}
FOUND_BY_HAND: list[Detection] = [
    ("one", "dog", 4, 4, 23, 23, 0.9),
    ("one", "dog", 5, 4, 23, 23, 0.8),
    ("one", "dog", 34, 4, 53, 23, 0.7),
    ("two", "dog", 45, 0, 60, 12, 0.6),
    ("two", "dog", 10, 10, 39, 39, 0.5),
]


@pytest.mark.parametrize(
    ("year", "precision"),
    [
        # Precision 1 at recalls 0 to 0.5, and 2 of 4 that count at 0.6 to 1.
        (2007, (6 * 1 + 5 * 0.5) / 11),
        (2012, 0.5 * 1 + 0.5 * 0.5),
    ],
)
def test_map_50_of_voc_data_equals_vocs_metric_computed_by_hand(tmp_path: Path, year: int, precision: float) -> None:
    checked = opened(tmp_path, BY_HAND, year)
    measured = measure(our_split(checked), search_metrics(checked), FOUND_BY_HAND)
    scores = precisions(measured, checked)
    assert scores["map_50"] == pytest.approx(precision, abs=1e-6)
    # COCO's, with 101 points, on the same boxes.
    assert scores["map"] == measured["coco/bbox_mAP"]
    assert scores["map_75"] == measured["coco/bbox_mAP_75"] > 0.5
    metric, name = final_metric(checked)
    assert measure(our_split(checked), [metric], FOUND_BY_HAND)[name] == scores["map_50"]


def random_images(random: np.random.Generator) -> dict[str, list[Thing]]:
    def thing() -> Thing:
        left, top = random.integers(1, 40), random.integers(1, 30)
        right, bottom = left + random.integers(4, 24), top + random.integers(4, 18)
        return Thing(
            str(random.choice(["dog", "person", "tvmonitor"])),
            (int(left), int(top), int(right), int(bottom)),
            bool(random.random() < 0.25),
        )

    return {f"{number:06d}": [thing() for _ in range(random.integers(0, 5))] for number in range(1, 31)}


def random_detections(random: np.random.Generator, images: Mapping[str, Sequence[Thing]]) -> list[Detection]:
    """Return detections near each object, some with a wrong class, and some at random places."""
    found: list[Detection] = []
    for name, things in images.items():
        for thing in things:
            for _ in range(random.integers(0, 3)):
                corners = [corner - 1 + random.normal(0, 1.5) for corner in thing.corners]
                label = thing.name if random.random() < 0.8 else "person"
                found.append((name, label, corners[0], corners[1], corners[2], corners[3], random.random()))
        found.append((name, "dog", 3, 3, 20, 20, random.random() / 2))
    return found


@pytest.mark.parametrize("year", [2007, 2012])
def test_map_50_equals_mmdetections_metric_on_its_own_voc_data_set(tmp_path: Path, year: int) -> None:
    random = np.random.default_rng(year)
    images = random_images(random)
    checked = opened(tmp_path, images, year)
    detections = random_detections(random, images)
    mine = precisions(measure(our_split(checked), search_metrics(checked), detections), checked)["map_50"]
    mode = "11points" if year == 2007 else "area"
    theirs = measure(mmdetections_split(tmp_path, f"VOC{year}"), [{"type": "VOCMetric", "eval_mode": mode}], detections)
    assert mine == theirs["pascal_voc/mAP"]
    assert 0.2 < mine < 0.9


def test_without_detections_every_precision_is_0(tmp_path: Path) -> None:
    checked = opened(tmp_path, BY_HAND)
    scores = precisions(measure(our_split(checked), search_metrics(checked), []), checked)
    assert (scores["map"], scores["map_50"]) == (0, 0)


def test_a_detector_trained_on_voc_data_has_all_metrics(tmp_path: Path, tiny_recipe: Path) -> None:
    preload()
    images = random_images(np.random.default_rng(0))
    checked = opened(tmp_path, {name: images[name] for name in list(images)[:8]})
    recipe = load_recipe(str(tiny_recipe))
    stage = recipe.structural
    job = Job(ARCHITECTURE, checked, stage.detector, stage.training, recipe.device, tmp_path / "trial", kind="cpu")
    scores = list(evaluate(job))[-1]
    assert isinstance(scores, Scores)
    assert set(scores.metrics) == {"map", "map_50", "map_75", "map_small", "map_medium", "map_large"}
    assert all(value == -1 or 0 <= value <= 1 for value in scores.metrics.values())
    assert "pascal_voc/mAP" in (job.folder / "output.log").read_text(encoding="utf-8")
