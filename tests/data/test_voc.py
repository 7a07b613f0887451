"""Pascal VOC's format: known boxes, written in the official layout, read to exactly those boxes."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules

import smnas_optuna.detector.layers  # noqa: F401  # provides mmcv's operators
from smnas_optuna.data.datasets import CheckedDataset, open_dataset
from smnas_optuna.data.voc import voc_annotations
from smnas_optuna.errors import UserError
from smnas_optuna.recipe.settings import VocDataset
from tests.published_formats import Corners, Thing, voc_xml, write_image, write_voc

CLASSES = ("person", "dog", "tvmonitor")
TRAINVAL = {
    "000005": [Thing("dog", (1, 1, 64, 48)), Thing("person", (12, 7, 20, 40), difficult=True)],
    "000007": [Thing("tvmonitor", (30, 2, 31, 3))],
}
TRAINVAL_OF_2012 = {"2008_000002": [Thing("person", (5, 6, 50, 40))], "2008_000003": []}
TEST = {"000001": [Thing("dog", (8, 12, 35, 48))]}


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """VOCdevkit with the image sets that detectors are compared on."""
    write_voc(tmp_path, "VOC2007/trainval", TRAINVAL)
    write_voc(tmp_path, "VOC2012/trainval", TRAINVAL_OF_2012)
    write_voc(tmp_path, "VOC2007/test", TEST)
    return tmp_path


def voc(root: Path, **keys: Any) -> VocDataset:
    return VocDataset.model_validate({"kind": "voc", "root": root, **keys})


def read(root: Path, *image_sets: str, classes: Sequence[str] = CLASSES) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(voc_annotations("dataset.train", root, image_sets, classes).read_bytes())
    return content


def things_of(content: Mapping[str, Any]) -> dict[str, list[Thing]]:
    """Turn COCO's form back into what VOC has: corners counted from 1, the last pixel within."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    found: dict[str, list[Thing]] = {image["file_name"]: [] for image in content["images"]}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    for box in content["annotations"]:
        x, y, width, height = box["bbox"]
        corners = (x + 1, y + 1, x + 1 + width, y + 1 + height)
        assert box["area"] == width * height
        found[files[box["image_id"]]].append(Thing(names[box["category_id"]], corners, bool(box["iscrowd"])))
    return found


def test_trainval_of_2007_and_2012_is_read_as_it_was_written(devkit: Path) -> None:
    content = read(devkit, "VOC2007/trainval", "VOC2012/trainval")
    assert things_of(content) == {
        **{f"VOC2007/JPEGImages/{name}.jpg": things for name, things in TRAINVAL.items()},
        **{f"VOC2012/JPEGImages/{name}.jpg": things for name, things in TRAINVAL_OF_2012.items()},
    }
    assert {(image["width"], image["height"]) for image in content["images"]} == {(64, 48)}
    assert content["categories"] == [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]


@pytest.mark.parametrize(
    ("below", "sets", "scoring"),
    [
        ("", ["VOC2007/test", "VOC2007/trainval"], "voc_11points"),
        ("", ["VOC2007/test", "VOC2012/trainval"], "voc_area"),
        ("VOC2007", ["test"], "voc_11points"),
        ("VOC2012", ["trainval"], "voc_area"),
    ],
)
def test_images_of_2007_are_scored_as_in_that_year(devkit: Path, below: str, sets: list[str], scoring: str) -> None:
    dataset = VocDataset(kind="voc", root=devkit / below, train=tuple(sets), val=tuple(sets), classes=CLASSES)
    assert open_dataset(dataset).scoring == scoring


def test_the_data_set_of_a_recipe_is_07_and_12_trainval_and_07_test_with_20_classes(devkit: Path) -> None:
    checked = open_dataset(voc(devkit))
    assert len(checked.classes) == 20
    assert (checked.classes[0], checked.classes[-1], checked.scoring) == ("aeroplane", "tvmonitor", "voc_11points")
    train, val = (json.loads(split.annotations.read_bytes()) for split in (checked.train, checked.val))
    assert len(train["images"]) == len(TRAINVAL) + len(TRAINVAL_OF_2012)
    assert things_of(val) == {"VOC2007/JPEGImages/000001.jpg": TEST["000001"]}
    assert all((checked.train.images / image["file_name"]).is_file() for image in train["images"])


def test_an_image_set_of_the_root_itself_needs_no_folder(devkit: Path) -> None:
    content = read(devkit / "VOC2007", "test")
    assert things_of(content) == {"JPEGImages/000001.jpg": TEST["000001"]}


def test_a_list_may_have_blank_lines_and_spaces(devkit: Path) -> None:
    (devkit / "VOC2007/ImageSets/Main/some.txt").write_text("000007  \r\n\r\n 000001\n")
    names = [image["file_name"] for image in read(devkit, "VOC2007/some")["images"]]
    assert names == ["VOC2007/JPEGImages/000007.jpg", "VOC2007/JPEGImages/000001.jpg"]


def test_a_folder_of_xml_files_with_the_pictures_beside_them_is_an_image_set(tmp_path: Path) -> None:
    things = {"b": [Thing("cat", (2, 3, 20, 30))], "a": [Thing("cow", (1, 1, 9, 9))]}
    for name, suffix in (("a", ".PNG"), ("b", ".jpeg")):
        write_image(tmp_path / "mine" / f"{name}{suffix}", things[name])
        # What LabelImg writes: the name of the picture may be another one.
        (tmp_path / "mine" / f"{name}.xml").write_text(voc_xml("before", things[name]), encoding="utf-8")
    found = things_of(read(tmp_path, "mine", classes=("cat", "cow")))
    assert found == {"mine/a.PNG": things["a"], "mine/b.jpeg": things["b"]}
    assert list(found) == ["mine/a.PNG", "mine/b.jpeg"]


def test_the_jpeg_is_used_of_several_pictures_with_one_name(devkit: Path) -> None:
    for suffix in ("bmp", "png"):
        write_image(devkit / f"VOC2007/JPEGImages/000001.{suffix}", [])
    assert list(things_of(read(devkit, "VOC2007/test"))) == ["VOC2007/JPEGImages/000001.jpg"]


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize("new", ["<size><width>0</width><height>0</height></size>", "<size/>", ""])
def test_the_size_is_read_from_the_image_if_its_annotation_has_none(devkit: Path, new: str) -> None:
    path = devkit / "VOC2007/Annotations/000001.xml"
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition("<size>")
    path.write_text(before + new + rest.partition("</size>")[2], encoding="utf-8")
    cv2.imwrite(str(devkit / "VOC2007/JPEGImages/000001.jpg"), np.zeros((30, 50, 3), dtype=np.uint8))
    (image,) = read(devkit, "VOC2007/test")["images"]
    assert (image["width"], image["height"]) == (50, 30)


@pytest.mark.parametrize("difficult", ["<difficult>0</difficult>", "<difficult> </difficult>", "<difficult/>", ""])
def test_an_object_is_not_difficult_by_default(devkit: Path, difficult: str) -> None:
    rewrite(devkit / "VOC2007/Annotations/000001.xml", "<difficult>0</difficult>", difficult)
    (box,) = read(devkit, "VOC2007/test")["annotations"]
    assert box["iscrowd"] == 0


things = st.builds(
    Thing,
    st.sampled_from(CLASSES),
    st.tuples(*[st.integers(1, 500)] * 4),
    st.booleans(),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(things, max_size=4), min_size=1, max_size=3))
def test_any_boxes_are_read_as_they_were_written(images: list[list[Thing]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "mine").mkdir()
        for number, each in enumerate(images):
            (root / "mine" / f"{number}.xml").write_text(voc_xml(str(number), each), encoding="utf-8")
        found = read(root, "mine")
    assert list(things_of(found).values()) == images
    assert [box["id"] for box in found["annotations"]] == list(range(1, 1 + sum(map(len, images))))


@pytest.mark.parametrize(
    "corners", [(8, 12, 35, 48), (8.9, 12.2, 35.999, 47.5), (0, 0, 64, 48), (1, 1, 1, 1), (-3, 2.5, 70, 50)]
)
def test_boxes_are_those_of_mmdetections_voc_data_set(tmp_path: Path, corners: Corners) -> None:
    """``mmdet.datasets.xml_style.XMLDataset._parse_instance_info`` (MMDetection 3.3.0), which VOCDataset inherits."""
    register_all_modules()
    images = {"000001": [Thing("dog", (3, 4, 5, 6), difficult=True), Thing("person", corners)]}
    write_voc(tmp_path, "VOC2007/val", images)
    theirs = DATASETS.build(
        {
            "type": "mmdet.VOCDataset",
            "data_root": str(tmp_path),
            "ann_file": "VOC2007/ImageSets/Main/val.txt",
            "data_prefix": {"sub_data_root": "VOC2007/"},
            "test_mode": True,
            "pipeline": [],
        }
    ).get_data_info(0)
    mine = read(tmp_path, "VOC2007/val")["annotations"]
    assert [instance["bbox"] for instance in theirs["instances"]] == [
        [x, y, x + width, y + height] for x, y, width, height in (box["bbox"] for box in mine)
    ]
    assert [instance["ignore_flag"] for instance in theirs["instances"]] == [box["iscrowd"] for box in mine] == [1, 0]


def opened(root: Path) -> CheckedDataset:
    return open_dataset(voc(root))


def test_converted_annotations_are_reused(devkit: Path) -> None:
    first = opened(devkit)
    written = first.train.annotations.stat().st_mtime_ns
    assert opened(devkit) == first
    assert first.train.annotations.stat().st_mtime_ns == written


def test_changed_annotations_are_converted_again(devkit: Path) -> None:
    first = opened(devkit)
    rewrite(devkit / "VOC2012/Annotations/2008_000002.xml", "<xmax>50</xmax>", "<xmax>51</xmax>")
    os.utime(devkit / "VOC2012/Annotations/2008_000002.xml", ns=(1, 1))
    second = opened(devkit)
    assert second.val == first.val
    assert second.train.annotations != first.train.annotations
    content = json.loads(second.train.annotations.read_bytes())
    assert things_of(content)["VOC2012/JPEGImages/2008_000002.jpg"] == [Thing("person", (5, 6, 51, 40))]


def test_annotations_are_converted_again_for_another_order_of_classes(devkit: Path) -> None:
    found = [read(devkit, "VOC2007/trainval", classes=classes) for classes in (CLASSES, CLASSES[::-1])]
    names = [content["categories"][0]["name"] for content in found]
    assert names == ["person", "tvmonitor"]


def test_annotations_are_converted_again_for_another_list_of_images(devkit: Path) -> None:
    assert len(read(devkit, "VOC2007/test")["images"]) == 1
    with open(devkit / "VOC2007/ImageSets/Main/test.txt", "a") as listing:
        listing.write("000005\n")
    assert len(read(devkit, "VOC2007/test")["images"]) == 2


XML = "VOC2007/Annotations/000001.xml"
PICTURE = "VOC2007/JPEGImages/000001.jpg"
LIST = "VOC2007/ImageSets/Main/test.txt"


def without_size(root: Path) -> None:
    rewrite(root / XML, "<width>64</width>", "")
    (root / PICTURE).unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda r: (r / LIST).unlink(),
            "dataset.val: 'VOC2007/test': no file {root}/" + LIST + "; expected",
        ),
        (lambda r: (r / LIST).write_text("\n \n"), "dataset.val: {root}/" + LIST + ": lists no image"),
        (lambda r: (r / LIST).write_bytes(b"\xff\xfe0"), "dataset.val: {root}/" + LIST + ": cannot be read: "),
        (
            lambda r: (r / LIST).write_text("000001\n9\n8\n"),
            "dataset.val: {root}/VOC2007/Annotations/9.xml and 1 more of 3 annotations absent; VOC2007/test lists them",
        ),
        (
            lambda r: (r / LIST).write_text("000001\n000001\n"),
            "dataset.val: " + PICTURE + " is in VOC2007/test twice; expected each image once",
        ),
        (
            lambda r: (r / PICTURE).unlink(),
            "dataset.val: {root}: " + PICTURE + " of 1 listed images absent; VOC2007/test lists them",
        ),
        (lambda r: (r / XML).write_text("<annotation>"), "dataset.val: {root}/" + XML + ": not XML: no element found"),
        (
            lambda r: (r / XML).write_bytes(b"\xff\xd8\xff\xe0"),
            "dataset.val: {root}/" + XML + ": not XML: not well",
        ),
        (
            lambda r: rewrite(r / XML, "<annotation>", "<?xml version='1.0' encoding='klingon'?><annotation>"),
            "dataset.val: {root}/" + XML + ": cannot be read: unknown encoding",
        ),
        (
            lambda r: (r / XML).write_text("<svg/>"),
            "dataset.val: {root}/" + XML + ": found <svg>, expected Pascal VOC's <annotation>",
        ),
        (
            lambda r: rewrite(r / XML, "<xmax>35</xmax>", ""),
            "dataset.val: {root}/" + XML + ": the box of 'dog' has xmin 8, ymin 12, xmax None, ymax 48; expected four",
        ),
        (
            lambda r: rewrite(r / XML, "<ymin>12<", "<ymin>low<"),
            "dataset.val: {root}/" + XML + ": the box of 'dog' has xmin 8, ymin low, xmax 35, ymax 48; expected four",
        ),
        (
            lambda r: rewrite(r / XML, "<ymin>12<", "<ymin>nan<"),
            "dataset.val: {root}/" + XML + ": the box of 'dog' has xmin 8, ymin nan, xmax 35, ymax 48; expected four",
        ),
        (
            lambda r: rewrite(r / XML, "<ymin>12<", "<ymin>1e999<"),
            "dataset.val: {root}/" + XML + ": the box of 'dog' has xmin 8, ymin 1e999, xmax 35, ymax 48; expected four",
        ),
        (
            lambda r: rewrite(r / XML, "<name>dog<", "<name>dogs<"),
            "dataset.val: {root}/" + XML + ": an object has the class 'dogs'; dataset.classes lacks 'dogs', and has a",
        ),
        (
            lambda r: rewrite(r / XML, "<width>64<", "<width>wide<"),
            "dataset.val: {root}/" + XML + ": found the size ['wide', '48'], expected two numbers",
        ),
        (without_size, "dataset.val: {root}/" + XML + ": has no size, and {root}/" + PICTURE + " cannot be read: "),
    ],
)
def test_the_error_of_unreadable_annotations_is_one_line(
    devkit: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(devkit)
    with pytest.raises(UserError) as refused:
        opened(devkit)
    assert str(refused.value).startswith(message.format(root=devkit))
    assert str(refused.value).isprintable()


def test_the_error_lists_all_unknown_classes(devkit: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.classes lacks 'dog', 'tvmonitor', and has person"):
        read(devkit, "VOC2007/trainval", classes=("person",))


def test_an_image_in_two_sets_is_an_error(devkit: Path) -> None:
    with pytest.raises(UserError) as refused:
        read(devkit, "VOC2007/trainval", "VOC2007/trainval")
    assert str(refused.value) == (
        "dataset.train: VOC2007/JPEGImages/000005.jpg is in VOC2007/trainval, VOC2007/trainval twice; "
        "expected each image once"
    )


def test_a_folder_without_xml_files_is_no_image_set(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match=r"'mine': no file .*; expected an image set such as VOC2007/trainval, or a"):
        read(tmp_path, "mine")


def test_a_cache_that_cannot_be_written_is_an_error(devkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMNAS_CACHE", str(devkit / LIST / "cache"))
    with pytest.raises(UserError, match="dataset: the annotations cannot be written below "):
        read(devkit, "VOC2007/test")
