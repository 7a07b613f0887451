"""BDD100K's format, of 2018 and of 2020: known boxes, written in the official layout, read to exactly those boxes."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smnas_optuna.data.bdd import CLASSES, bdd_annotations
from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.errors import UserError
from smnas_optuna.recipe.settings import BddDataset
from tests.published_formats import Thing, bdd_frames_of_2018, bdd_frames_of_2020, write_bdd

TRAIN = {
    "0000f77c-6257be58.jpg": [
        Thing("traffic light", (1125.902264, 133.184488, 1156.978645, 210.875445)),
        Thing("car", (45.240919, 254.530367, 357.805838, 487.906215)),
        Thing("rider", (0.0, 0.0, 1280.0, 720.0)),
    ],
    "0000f77c-62c2a288.jpg": [Thing("pedestrian", (1, 2, 3, 4), difficult=True)],
}
VAL = {"b1c66a42-6f7d68ca.jpg": [Thing("bus", (10.5, 20.25, 30, 40))]}


def read(frames: Any, folder: Path) -> dict[str, Any]:
    path = folder / "labels.json"
    path.write_text(json.dumps(frames), encoding="utf-8")
    content: dict[str, Any] = json.loads(bdd_annotations("dataset.train.annotations", path).read_bytes())
    return content


def things_of(content: Mapping[str, Any]) -> dict[str, list[tuple[str, list[float], bool]]]:
    """Return each frame's boxes in COCO's form: left, top, width, height."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    found: dict[str, list[tuple[str, list[float], bool]]] = {file: [] for file in files.values()}
    for box in content["annotations"]:
        assert box["area"] == box["bbox"][2] * box["bbox"][3]
        found[files[box["image_id"]]].append((names[box["category_id"]], box["bbox"], bool(box["iscrowd"])))
    return found


def in_cocos_form(thing: Thing) -> tuple[str, list[float], bool]:
    """Width and height are the differences of the corners, as the toolkit's own conversion has them.

    ``bdd100k2coco_detection`` in ``bdd100k/bdd100k2coco.py``, for the labels of 2018, and ``set_box_object_geometry``
    in ``bdd100k/label/to_coco.py``, for those of 2020, of https://github.com/bdd100k/bdd100k.
    """
    left, top, right, bottom = thing.corners
    return thing.name, [left, top, right - left, bottom - top], thing.difficult


def test_labels_of_2020_are_read_as_they_were_written(tmp_path: Path) -> None:
    content = read(bdd_frames_of_2020(TRAIN), tmp_path)
    assert things_of(content) == {name: [in_cocos_form(thing) for thing in things] for name, things in TRAIN.items()}
    assert {(image["width"], image["height"]) for image in content["images"]} == {(1280, 720)}
    assert tuple(category["name"] for category in content["categories"]) == CLASSES
    assert len(CLASSES) == 10


def test_labels_of_2018_are_read_without_lanes_and_drivable_areas(tmp_path: Path) -> None:
    images = {name: [thing for thing in things if not thing.difficult] for name, things in TRAIN.items()}
    content = read(bdd_frames_of_2018(images), tmp_path)
    assert things_of(content) == {name: [in_cocos_form(thing) for thing in things] for name, things in images.items()}


def test_a_recipes_data_set_is_opened_in_either_layout(tmp_path: Path) -> None:
    for name, images in (("train", TRAIN), ("val", VAL)):
        write_bdd(tmp_path, f"labels/det_20/det_{name}.json", f"images/100k/{name}", bdd_frames_of_2020(images))
        write_bdd(
            tmp_path, f"labels/bdd100k_labels_images_{name}.json", f"images/100k/{name}", bdd_frames_of_2018(images)
        )
    new = open_dataset(BddDataset(kind="bdd", root=tmp_path))
    old = open_dataset(
        BddDataset.model_validate(
            {
                "kind": "bdd",
                "root": tmp_path,
                **{
                    name: {"annotations": f"labels/bdd100k_labels_images_{name}.json", "images": f"images/100k/{name}"}
                    for name in ("train", "val")
                },
            }
        )
    )
    assert new.classes == old.classes == CLASSES
    assert new.scoring == old.scoring == "coco"
    assert new.val.images == old.val.images == tmp_path / "images/100k/val"
    assert new.val.annotations != old.val.annotations
    assert things_of(json.loads(new.val.annotations.read_bytes())) == {
        name: [in_cocos_form(thing) for thing in things] for name, things in VAL.items()
    }


@pytest.mark.parametrize("labels", [{}, {"labels": None}, {"labels": []}])
def test_a_frame_without_labels_is_an_image_without_boxes(tmp_path: Path, labels: dict[str, Any]) -> None:
    assert things_of(read([{"name": "a.jpg", **labels}], tmp_path)) == {"a.jpg": []}


@pytest.mark.parametrize(
    ("category", "name"),
    [
        *((name, name) for name in CLASSES),
        ("person", "pedestrian"),
        ("motor", "motorcycle"),
        ("bike", "bicycle"),
        ("van", "car"),
        ("caravan", "car"),
    ],
)
def test_a_class_may_have_its_name_of_2018(tmp_path: Path, category: str, name: str) -> None:
    frames = bdd_frames_of_2018({"a.jpg": [Thing(category, (1, 2, 30, 40))]})
    assert things_of(read(frames, tmp_path)) == {"a.jpg": [(name, [1, 2, 29, 38], False)]}


@pytest.mark.parametrize(
    ("category", "name"), [("other person", "pedestrian"), ("other vehicle", "car"), ("trailer", "truck")]
)
def test_crowds_and_other_categories_are_not_scored(tmp_path: Path, category: str, name: str) -> None:
    frames = bdd_frames_of_2020({"a.jpg": [Thing(category, (1, 2, 30, 40))]})
    assert things_of(read(frames, tmp_path)) == {"a.jpg": [(name, [1, 2, 29, 38], True)]}


@pytest.mark.parametrize(
    ("attributes", "is_crowd"), [({"crowd": True}, True), ({"crowd": False}, False), ({}, False), (None, False)]
)
def test_the_attribute_crowd_marks_a_crowd(tmp_path: Path, attributes: dict[str, Any] | None, is_crowd: bool) -> None:
    frames = bdd_frames_of_2020({"a.jpg": [Thing("rider", (1, 2, 30, 40))]})
    frames[0]["labels"][0]["attributes"] = attributes
    assert things_of(read(frames, tmp_path)) == {"a.jpg": [("rider", [1, 2, 29, 38], is_crowd)]}


numbers = st.floats(0, 1280, allow_nan=False) | st.integers(0, 1280)
things = st.builds(Thing, st.sampled_from(CLASSES), st.tuples(*[numbers] * 4), st.booleans())
images = st.lists(st.lists(things, max_size=4), min_size=1, max_size=3)


@settings(max_examples=50, deadline=None)
@given(images)
def test_any_boxes_are_read_as_they_were_written(images: list[list[Thing]]) -> None:
    named = {f"{number}.jpg": things for number, things in enumerate(images)}
    with tempfile.TemporaryDirectory() as folder:
        content = read(bdd_frames_of_2020(named), Path(folder))
    assert list(things_of(content).values()) == [[in_cocos_form(thing) for thing in things] for things in images]
    assert [box["id"] for box in content["annotations"]] == list(range(1, 1 + sum(map(len, images))))


def test_converted_labels_are_reused_until_the_labels_change(tmp_path: Path) -> None:
    path = tmp_path / "det_val.json"
    path.write_text(json.dumps(bdd_frames_of_2020(VAL)), encoding="utf-8")
    first = bdd_annotations("", path)
    written = first.stat().st_mtime_ns
    assert bdd_annotations("", path) == first
    assert first.stat().st_mtime_ns == written
    path.write_text(path.read_text(encoding="utf-8").replace("20.25", "21.25"), encoding="utf-8")
    os.utime(path, ns=(1, 1))
    second = bdd_annotations("", path)
    assert second != first
    assert things_of(json.loads(second.read_bytes())) == {
        "b1c66a42-6f7d68ca.jpg": [("bus", [10.5, 21.25, 19.5, 18.75], False)]
    }


def frame(**label: Any) -> list[dict[str, Any]]:
    box = {"x1": 1, "y1": 2, "x2": 3, "y2": 4}
    return [{"name": "a.jpg", "labels": [{"category": "car", "box2d": box, **label}]}]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ({"frames": []}, "not labels of BDD100K: expected a list of frames"),
        (["a.jpg"], "frame 0 has no name, so not labels of BDD100K"),
        ([{"name": "a.jpg"}, {"labels": []}], "frame 1 has no name, so not labels of BDD100K"),
        ([{"name": "a.jpg", "labels": {"id": 1}}], "a.jpg: expected a list of records under 'labels'"),
        ([{"name": "a.jpg", "labels": [3]}], "a.jpg: expected a list of records under 'labels'"),
        (frame(category="tram"), f"a.jpg: a box has the category 'tram'; expected one of {', '.join(CLASSES)}"),
        (frame(category=None), "a.jpg: a box has the category 'None'; expected one of pedestrian, rider"),
        (frame(box2d=[1, 2, 3, 4]), "a.jpg: found the box [1, 2, 3, 4], expected numbers x1, y1, x2 and y2"),
        (frame(box2d={"x1": 1}), "a.jpg: found the box {'x1': 1}, expected numbers x1, y1, x2 and y2"),
        (
            frame(box2d={"x1": 1, "y1": "2", "x2": 3, "y2": 4}),
            "a.jpg: found the box {'x1': 1, 'y1': '2', 'x2': 3, 'y2': 4}, expected numbers x1, y1, x2 and y2",
        ),
        (
            frame(box2d={"x1": 1, "y1": float("nan"), "x2": 3, "y2": 4}),
            "a.jpg: found the box {'x1': 1, 'y1': nan, 'x2': 3, 'y2': 4}, expected numbers x1, y1, x2 and y2",
        ),
        (frame(box2d={"x1": 1, "y1": 2, "x2": 10**400, "y2": 4}), "a.jpg: found the box {'x1': 1, 'y1': 2, 'x2': 1000"),
    ],
)
def test_the_error_of_unreadable_labels_is_one_line(tmp_path: Path, frames: Any, message: str) -> None:
    with pytest.raises(UserError) as refused:
        read(frames, tmp_path)
    assert str(refused.value).startswith(f"dataset.train.annotations: {message}")
    assert str(refused.value).isprintable()


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    dataset = BddDataset(kind="bdd", root=tmp_path)
    path = tmp_path / "labels/det_20/det_train.json"
    with pytest.raises(UserError) as refused:
        open_dataset(dataset)
    assert str(refused.value) == f"dataset.train.annotations: {path}: no such file"
    path.parent.mkdir(parents=True)
    path.write_text('[{"name": ', encoding="utf-8")
    with pytest.raises(UserError) as refused:
        open_dataset(dataset)
    assert str(refused.value).startswith(f"dataset.train.annotations: {path}: not JSON, so not labels of BDD100K: ")
