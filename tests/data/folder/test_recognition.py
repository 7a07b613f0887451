"""What cannot be used is refused in one line; what can be done without is left out and counted."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.data.folder.layout import part_of
from smnas_optuna.data.folder.recognition import is_data_folder, recognise
from smnas_optuna.data.folder.splits import split_folder
from smnas_optuna.errors import UserError
from smnas_optuna.recipe.settings import FolderDataset
from tests.data.folder.test_splitting import noise
from tests.data.folder.test_splitting import write as write_images
from tests.data_folders import write_json


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with ten images of three classes in YOLO's format, and their train and val folders."""
    folder = tmp_path / "photos"
    for part, first in (("train", 0), ("val", 8)):
        images, labels = folder / "images" / part, folder / "labels" / part
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        write_images(
            images, **{f"{number}": noise(number) for number in range(first, first + (8 if first == 0 else 4))}
        )
        for image in images.iterdir():
            (labels / f"{image.stem}.txt").write_text("".join(f"{label} 0.5 0.5 0.2 0.3\n" for label in range(3)))
    describe(folder)
    return folder


def describe(folder: Path, **changes: object) -> None:
    content = {"train": "images/train", "val": "images/val", "names": ["cat", "dog", "cow"], **changes}
    (folder / "data.yaml").write_text(yaml.safe_dump({key: value for key, value in content.items() if value}))


def lines(folder: Path, **keys: object) -> tuple[str, ...]:
    splits = split_folder(FolderDataset.model_validate({"kind": "folder", "root": folder, **keys}))
    return *splits.describe(), *splits.problems()


def label(folder: Path, number: int, text: str) -> None:
    part = "train" if number < 8 else "val"
    (folder / "labels" / part / f"{number}.txt").write_text(text)


def test_three_lines_say_what_was_recognised(root: Path) -> None:
    assert lines(root) == (
        f"{root}: YOLO, by data.yaml; 3 classes: cat, dog, cow",
        "training: 8 images with 24 boxes, from images/train",
        "validation: 4 images with 12 boxes, from images/val",
    )
    assert lines(root / "data.yaml") == lines(root)


def test_without_a_validation_part_a_file_says_which_was_split_off(root: Path, tmp_path: Path) -> None:
    describe(root, val=None)
    _, training, validation = lines(root)
    assert training.startswith("training: 6 images with 18 boxes, from images/train, less these")
    listed = re.fullmatch(r"validation: 2 images with 6 boxes, from images/train, as (.+) lists", validation)
    assert listed
    assert len([name for name in Path(listed[1]).read_text().splitlines() if not name.startswith("#")]) == 2
    mine = tmp_path / "mine.txt"
    mine.write_text("images/train/3.jpg\n")
    assert lines(root, validation=mine)[1].startswith("training: 7 images with 21 boxes")
    describe(root)  # the file is for all images that are not for a test
    mine.write_text("images/train/3.jpg\nimages/val/8.jpg\n")
    assert lines(root, validation=mine)[1:] == (
        "training: 10 images with 30 boxes, from images/train and images/val, less these",
        f"validation: 2 images with 6 boxes, from images/train and images/val, as {mine} lists",
    )


Change = Callable[[Path], Any]


def in_turn(*changes: Change) -> Change:
    def change(root: Path) -> None:
        for each in changes:
            each(root)

    return change


def without_labels(root: Path) -> None:
    (root / "data.yaml").unlink()
    for path in (root / "labels").rglob("*.txt"):
        path.unlink()


def label_all(text: str) -> Change:
    def change(root: Path) -> None:
        for number in range(12):
            label(root, number, text)

    return change


def spoil_training_images(root: Path) -> None:
    for path in (root / "images" / "train").iterdir():
        path.write_text("none")


def write_empty_coco(root: Path) -> None:
    for name in "ab":
        write_json(root / f"{name}.json", {"images": [], "annotations": [], "categories": []})


REFUSED: dict[str, tuple[Change, str]] = {
    "a class that is not listed": (
        lambda root: label(root, 3, "0 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.1 0.1\n"),
        r"labels/train/3.txt:2: found the class 7; data.yaml lists 3 classes, numbered from 0",
    ),
    "a part that points nowhere": (
        lambda root: describe(root, val="images/vla"),
        r"data.yaml: val: no folder or list {root}/images/vla; expected one with images",
    ),
    "a part on the network": (
        lambda root: describe(root, train="https://example.org/data.zip"),
        r"data.yaml: train: https://example.org/data.zip is on the network; expected a folder of images on this "
        "machine",
    ),
    "a part without images": (
        in_turn(lambda root: describe(root, val="empty"), lambda root: (root / "empty").mkdir()),
        r"data.yaml: val: no image in {root}/empty",
    ),
    "a list with an image that is not there": (
        in_turn(
            lambda root: describe(root, val="val.txt"),
            lambda root: (root / "val.txt").write_text("images/val/8.jpg\nx.jpg\ny.jpg"),
        ),
        r"val.txt: lists {root}/x.jpg and 1 more; no such image",
    ),
    "class names with a gap": (
        lambda root: describe(root, names={0: "cat", 2: "dog"}),
        r"data.yaml: names: class 1 is missing; expected numbers from 0 on",
    ),
    "a class listed twice": (
        lambda root: describe(root, names=["cat", "dog", "cat"]),
        r"data.yaml: the class 'cat' is listed more than once",
    ),
    "no class names": (
        lambda root: (root / "data.yaml").unlink(),
        r": 12 images have YOLO's labels, such as {root}/labels/train/0.txt, and nothing lists the classes; expected "
        "data.yaml, or classes.txt with one class per line",
    ),
    "labels in pixels": (
        label_all("0 120 80 30 20"),
        r": 8 of 8 are images with labels out of range, 0 to 1, such as "
        r"{root}/labels/train/0.txt:1: found 120, 80, 30, 20",
    ),
    "two formats": (
        lambda root: (root / "x.xml").write_text("<annotation/>"),
        r": labels in 2 formats: yolo \(data.yaml\) and voc \(1 XML files\); choose one with --set dataset.format=yolo",
    ),
    "no labels": (
        without_labels,
        r": 12 images, and no labels were found; expected YOLO's data.yaml or classes.txt .*",
    ),
    "images that cannot be opened": (
        spoil_training_images,
        r": 8 of 8 are images that cannot be opened, such as images/train/0.jpg: not an image",
    ),
    "two files for a part": (
        in_turn(without_labels, write_empty_coco),
        r": a.json and b.json are both for train; expected one json file for each part, named after it",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(case: str, root: Path) -> None:
    change, message = REFUSED[case]
    change(root)
    with pytest.raises(UserError) as caught:
        split_folder(FolderDataset(kind="folder", root=root))
    assert re.search(message.replace("{root}", re.escape(str(root))) + "$", str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_an_absent_one_and_a_single_image_are_refused(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "absent", "no such folder"), (tmp_path, "the folder is empty")):
        with pytest.raises(UserError, match=f"^{path}: {message}; expected "):
            recognise(path)
    (image,) = write_images(tmp_path, a=noise(0))
    image.with_suffix(".txt").write_text("0 0.5 0.5 0.2 0.2")
    (tmp_path / "classes.txt").write_text("cat")
    with pytest.raises(UserError, match=r"1 image; expected at least 2, one to train on and one to validate on$"):
        lines(tmp_path)


LEFT_OUT: dict[str, tuple[Change, str]] = {
    "labels out of range": (
        lambda root: label(root, 3, "0 0.5 0.5 0.2 0.2\n1 1.5 0.5 0.2 0.2\n"),
        "images with labels out of range, 0 to 1, which are left out: 1, such as {root}/labels/train/3.txt:2: found "
        "1.5, 0.5, 0.2, 0.2",
    ),
    "labels that are no numbers": (
        lambda root: label(root, 3, "cat 0.5 0.5 0.2 0.2\n"),
        "images with labels that cannot be read, which are left out: 1, such as {root}/labels/train/3.txt:1: found "
        "'cat 0.5 0.5 0.2 0.2', expected numbers",
    ),
    "a confidence behind the box": (
        lambda root: label(root, 3, "0 0.5 0.5 0.2 0.2 0.9\n"),
        "images with labels that cannot be read, which are left out: 1, such as {root}/labels/train/3.txt:1: 6 "
        "numbers; expected a class and 4 numbers, or a polygon",
    ),
    "an image that cannot be opened": (
        lambda root: (root / "images" / "train" / "3.jpg").write_text("none"),
        "images that cannot be opened, which are left out: 1, such as images/train/3.jpg: not an image",
    ),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_single_images_that_cannot_be_used_are_left_out_and_counted(case: str, root: Path) -> None:
    change, message = LEFT_OUT[case]
    change(root)
    found = lines(root)
    assert found[1].startswith("training: 7 images with 21 boxes")
    assert found[3:] == (message.replace("{root}", str(root)),)
    assert open_dataset(FolderDataset(kind="folder", root=root)).train_images == 7


def test_an_image_without_labels_shows_background(root: Path) -> None:
    (root / "labels" / "train" / "3.txt").unlink()
    assert lines(root)[1] == "training: 8 images with 21 boxes, from images/train"


def test_the_format_can_be_chosen(root: Path) -> None:
    (root / "x.xml").write_text("<annotation/>")
    assert lines(root, format="yolo")[0].startswith(f"{root}: YOLO")
    with pytest.raises(UserError, match=r"no labels were found; expected labels in the format coco$"):
        lines(root, format="coco")


def test_keypoints_behind_a_box_are_ignored(root: Path) -> None:
    describe(root, kpt_shape=[2, 3])
    label_all("1 0.5 0.5 0.2 0.2 0.1 0.1 2 0.3 0.3 2\n")(root)
    assert lines(root)[1] == "training: 8 images with 8 boxes, from images/train"


def test_a_data_yaml_of_another_machine_is_used_where_the_folders_are_beside_it(root: Path) -> None:
    describe(root, path="/content/photos", train="/content/photos/images/train", val="../images/val")
    assert lines(root)[2] == "validation: 4 images with 12 boxes, from ../images/val"


def test_a_changed_label_is_read_again(root: Path) -> None:
    before = lines(root)
    label(root, 3, "0 0.5 0.5 0.2 0.2\n")
    assert lines(root)[1] == "training: 8 images with 22 boxes, from images/train" != before[1]


def test_hidden_files_and_links_in_circles_are_harmless(root: Path) -> None:
    before = lines(root)
    (root / "images" / "train" / "again").symlink_to(root / "images" / "train")
    (root / "images" / "train" / "._3.jpg").write_text("of a Mac")
    assert lines(root) == before


def test_pascal_voc_without_an_image_or_an_xml_file(tmp_path: Path) -> None:
    xml = "<annotation><object><name>cat</name><bndbox>{}</bndbox></object></annotation>"
    box = "<xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax>"
    write_images(tmp_path, **{name: noise(number) for number, name in enumerate("abcdef")})
    for name in "abcde":
        (tmp_path / f"{name}.xml").write_text(xml.format(box))
    (tmp_path / "e.xml").write_text(xml.format("<xmin>left</xmin>"))
    (tmp_path / "gone.xml").write_text(xml.format(box))
    assert lines(tmp_path)[3:] == (
        "images with XML files that cannot be read, which are left out: 1, such as e.xml: the box of 'cat' has "
        "['left', None, None, None], expected four numbers",
        "XML files without an image, which are left out: 1, such as gone.xml",
        "images without an XML file, which are left out: 1, such as f.jpg",
    )


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("train/a.xml", "train"),
        ("images/valid", "val"),
        ("obj_train_data", "train"),
        ("annotations/instances_val2017.json", "val"),
        ("labels/det_20/det_train.json", "train"),
        ("validation_images/x.json", "val"),
        ("testing/a.json", "test"),
        ("value/a.json", None),
        ("trainval/a.json", None),
        ("contest/latest.json", None),
        ("trains/a.json", None),
    ],
)
def test_parts_are_recognised_by_names(path: str, part: str | None) -> None:
    assert part_of(path) == part


def test_a_recipe_is_no_data_folder(root: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    (tmp_path / "recipe.yaml").write_text("name: mine\ndataset: {kind: coco}\n")
    (tmp_path / "broken.yaml").write_text("name: [")
    assert is_data_folder(root)
    assert is_data_folder(root / "data.yaml")
    assert not any(is_data_folder(tmp_path / name) for name in ("recipe.yaml", "broken.yaml", "absent", "a.jpg"))
