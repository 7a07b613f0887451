import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smnas_optuna.data.datasets import DatasetSplit, LocatedSplit, check_annotations
from smnas_optuna.data.inspection import BoxSizes, Fault, Spread, inspect_annotations, scale_to_fit
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import InputSize

Content = dict[str, Any]
Spoil = Callable[[Content], object]

CONTENT: Content = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 200, "height": 100},
        {"id": 3, "file_name": "night/b.png", "width": 100, "height": 200},
        {"id": 4, "file_name": "c.png", "width": 200, "height": 100},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 16, 16], "area": 256, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 4, "bbox": [0, 0, 200, 100], "area": 20000, "iscrowd": 0},
        {"id": 3, "image_id": 3, "category_id": 4, "bbox": [10, 10, 40, 90], "area": 3600, "iscrowd": 0},
        {"id": 4, "image_id": 3, "category_id": 90, "bbox": [50, 10, 8, 8], "area": 64, "iscrowd": 1},
    ],
    "categories": [{"id": 90, "name": "zebra"}, {"id": 4, "name": "ant"}],
}
PASSED_OVER = "which training passes over"
NO_BOX = Fault("train", "no box to learn from or be scored on", stops=True)


def faults_after(spoil: Spoil) -> tuple[Fault, ...]:
    content = copy.deepcopy(CONTENT)
    spoil(content)
    return inspect_annotations("train", content, []).faults


def is_refused(content: Any) -> bool:
    try:
        check_annotations(LocatedSplit(DatasetSplit(Path("train.json"), Path()), "", "", ""), content)
    except UserError:
        return True
    return False


def put(part: str, number: int, **values: object) -> Spoil:
    return lambda content: content[part][number].update(values)


def drop(part: str, number: int, field: str) -> Spoil:
    return lambda content: content[part][number].pop(field)


def test_valid_annotations_have_no_fault_and_are_summarised() -> None:
    found = inspect_annotations("train", CONTENT, [InputSize(400, 200)])
    assert found.faults == ()
    assert found.classes == ("zebra", "ant")
    assert list(found.images) == CONTENT["images"]
    summary = found.summary
    assert (summary.images, summary.empty_images, summary.boxes, summary.crowds) == (3, 1, 4, 1)
    assert summary.image_sizes == {"200x100": 2, "100x200": 1}
    assert summary.boxes_per_class == {"zebra": 1, "ant": 2}
    assert summary.boxes_per_image == Spread(0, 1, 2)
    assert summary.aspect_ratio == Spread(40 / 90, 1, 2)
    original, doubled = summary.box_sizes
    assert original == BoxSizes(None, 1, 1, 1, Spread(16, 60, np.sqrt(20000)))
    # 16 pixels become 32, which COCO takes for medium; 60x60 become 120x120.
    assert doubled == BoxSizes("400x200", 0, 1, 2, Spread(32, 120, 2 * np.sqrt(20000)))


@settings(deadline=None)
@given(*[st.integers(1, 3000)] * 4)
def test_images_are_scaled_as_mmdetection_scales_them(width: int, height: int, across: int, down: int) -> None:
    _, factor = mmcv.rescale_size((width, height), (across, down), return_scale=True)
    sides = np.array([width], dtype=np.float64), np.array([height], dtype=np.float64)
    assert scale_to_fit(*sides, InputSize(across, down)) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("spoil", "what", "example"),
    [
        (drop("images", 2, "width"), "records of images not in COCO's format", "images[2] has no 'width'"),
        (lambda c: c["images"].append("d.png"), "records of images not in COCO's format", "images[3] has 'd.png' for"),
        (drop("annotations", 0, "area"), "records of annotations not in COCO's format", "annotations[0] has no 'area'"),
        (put("annotations", 0, bbox=[1, 2, 3, float("nan")]), "records of annotations not in COCO's", "[1, 2, 3, nan]"),
        (put("annotations", 0, bbox=[1, 2, 3, float("inf")]), "records of annotations not in COCO's", "[1, 2, 3, inf]"),
        (put("annotations", 0, bbox=[1, 2, 3]), "records of annotations not in COCO's format", "bbox [1, 2, 3]"),
        (put("annotations", 0, image_id=5), "annotations of an unknown image_id", "annotation 1 has 5"),
        (put("annotations", 0, category_id="90"), "annotations of an unknown category_id", "annotation 1 has '90'"),
        (put("annotations", 0, id=0), "annotations with an id below 1", "annotation 0"),
        (put("annotations", 1, id=1), "ids that several annotations have", "1: 2 times"),
        (put("images", 2, id=7), "ids that several images have", "7: 2 times"),
        (put("categories", 1, name="zebra"), "names that several categories have", "'zebra': 2 times"),
        (lambda c: c.pop("images"), "not COCO annotations: no list of records under 'images'", None),
        (lambda c: c.update(annotations={}), "not COCO annotations: no list of records under 'annotations'", None),
        (lambda c: c["categories"].clear(), "annotations of an unknown category_id", "annotation 1 has 90"),
        (lambda c: c["annotations"].clear(), "no box to learn from or be scored on", None),
    ],
)
def test_a_fault_that_a_search_is_refused_for_is_an_error(spoil: Spoil, what: str, example: str | None) -> None:
    content = copy.deepcopy(CONTENT)
    spoil(content)
    first = next(fault for fault in inspect_annotations("train", content, []).faults if fault.stops)
    assert first.place == "train"
    assert first.what.startswith(what)
    assert (example or "") in "".join(first.examples[:1])
    assert bool(first.examples) == bool(example)
    assert is_refused(content)


@pytest.mark.parametrize("content", [[], None, "", 3, {}, {"images": 1}])
def test_any_json_can_be_inspected(content: Any) -> None:
    found = inspect_annotations("train", content, [InputSize(40, 30)])
    assert any(fault.stops for fault in found.faults)
    assert (found.summary.images, found.summary.boxes, found.summary.boxes_per_image) == (0, 0, None)
    assert is_refused(content)


IN_A = "a.png: annotation 1, zebra, "


@pytest.mark.parametrize(
    ("bbox", "area", "what"),
    [
        ([1, 2, 0, 16], 256, "without width or height"),
        ([1, 2, 16, -3], 256, "without width or height"),
        ([0.1, 0.2, 0.5, 0.25], 1, "narrower or lower than a pixel"),
        ([200, 2, 16, 16], 256, "outside their image"),
        ([-16, 2, 16, 16], 256, "outside their image"),
        ([1, 100.5, 16, 16], 256, "outside their image"),
        ([1, 2, 16, 16], 0, "with an area of 0 or less"),
    ],
)
def test_a_box_that_training_passes_over_is_a_warning(bbox: list[float], area: float, what: str) -> None:
    content = copy.deepcopy(CONTENT)
    content["annotations"][0] |= {"bbox": bbox, "area": area}
    found = inspect_annotations("train", content, [])
    example = f"{IN_A}[{', '.join(f'{number:g}' for number in bbox)}] in 200x100"
    assert found.faults == (
        Fault("train", f"boxes {what}, {PASSED_OVER}", stops=False, count=1, examples=(example,)),
        Fault("train", "classes without a box that counts", stops=False, count=1, examples=("zebra",)),
    )
    assert (found.summary.boxes, found.summary.passed_over) == (4, 1)
    assert found.summary.boxes_per_class == {"zebra": 0, "ant": 2}
    assert not is_refused(content)


@pytest.mark.parametrize("bbox", [[-1.5, 2, 16, 16], [1, 90, 16, 11.5], [190, 2, 12, 16]])
def test_a_box_that_exceeds_its_image_is_a_warning_and_is_used(bbox: list[float]) -> None:
    (fault,) = faults_after(put("annotations", 0, bbox=bbox))
    assert (fault.what, fault.stops) == ("boxes reaching more than 1 pixel beyond their image", False)


@pytest.mark.parametrize("bbox", [[-1, 2, 16, 16], [1, 85, 16, 16], [185, 2, 16, 16]])
def test_a_box_may_exceed_its_image_by_a_pixel(bbox: list[float]) -> None:
    assert faults_after(put("annotations", 0, bbox=bbox)) == ()


def test_a_box_given_twice_is_a_warning() -> None:
    twin = {**CONTENT["annotations"][0], "id": 9}
    (fault,) = faults_after(lambda content: content["annotations"].append(twin))
    assert (fault.what, fault.stops) == ("boxes given before, with the same image and class", False)
    assert fault.examples == (f"{IN_A.replace('1', '9')}[1, 2, 16, 16] in 200x100",)
    assert faults_after(lambda content: content["annotations"].append({**twin, "category_id": 4})) == ()
    assert faults_after(lambda content: content["annotations"].append({**twin, "image_id": 4})) == ()


def test_an_image_listed_twice_is_a_warning() -> None:
    (fault,) = faults_after(put("images", 2, file_name="a.png"))
    assert (fault.what, fault.stops, fault.examples) == (
        "file_names that several images have",
        False,
        ("'a.png': 2 times",),
    )


def test_coordinates_relative_to_the_image_leave_no_box_to_train_on() -> None:
    def shrink(content: Content) -> None:
        for box in content["annotations"]:
            box["bbox"] = [0.1, 0.2, 0.3, 0.4]

    too_small, *_, nothing = faults_after(shrink)
    assert (too_small.what, too_small.count) == (f"boxes narrower or lower than a pixel, {PASSED_OVER}", 4)
    assert nothing == NO_BOX


def test_crowds_alone_are_no_boxes_to_train_on() -> None:
    def crowd(content: Content) -> None:
        for box in content["annotations"]:
            box["iscrowd"] = 1

    assert faults_after(crowd) == (NO_BOX,)


def test_all_faults_are_counted_and_the_first_shown() -> None:
    def spoil(content: Content) -> None:
        content["annotations"] += [
            {**CONTENT["annotations"][0], "id": 10 + number, "bbox": [number, 1, 0, 0]} for number in range(5)
        ]
        content["annotations"] += [{"id": 20}, {"id": 21}]

    malformed, flat = faults_after(spoil)
    assert (malformed.count, flat.count) == (2, 5)
    assert [example.partition(",")[0] for example in flat.examples] == [
        "a.png: annotation 10",
        "a.png: annotation 11",
        "a.png: annotation 12",
    ]
    assert str(flat) == f"train: boxes without width or height, {PASSED_OVER}: 5"
    assert str(NO_BOX) == "train: no box to learn from or be scored on"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 200) | st.floats() | st.text("a9", max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("a9", max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_an_inspection_finds_an_error_wherever_a_search_is_refused(data: st.DataObject) -> None:
    content = copy.deepcopy(CONTENT)
    for _ in range(data.draw(st.integers(0, 3))):
        part = data.draw(st.sampled_from(sorted(content)))
        record = data.draw(st.sampled_from(content[part]))
        record[data.draw(st.sampled_from(sorted(record)))] = data.draw(json_values)
    content = json.loads(json.dumps(content))
    faults = inspect_annotations("train", content, [InputSize(40, 30)]).faults
    if is_refused(content):
        assert any(fault.stops for fault in faults)
    else:
        assert all(not fault.stops or fault == NO_BOX for fault in faults)
