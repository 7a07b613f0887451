"""One data set in all layouts: the same images, classes and boxes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.data.digits import make_digits
from smnas_optuna.data.folder.splits import split_folder
from smnas_optuna.recipe.settings import FolderDataset
from tests.data_folders import LAYOUTS, Corners, Data, coco_content, read_back, read_coco, write_json, write_voc_sets
from tests.published_formats import Thing, bdd_frames_of_2018, write_image

PHOTOGRAPHS = Path(__file__).parents[4] / "shared" / "data" / "bccd_320"


@pytest.fixture(scope="session")
def digits(cache: Path) -> Data:
    root = make_digits(4, 12, 6, width=120, height=90)
    return read_coco(root, {"train": Path("train.json"), "val": Path("val.json")}, lambda part: root / part)


@pytest.fixture(scope="session")
def photographs() -> Data:
    if not PHOTOGRAPHS.is_dir():
        pytest.skip("no photographs here")
    files = {part: Path(f"instances_{part}.json") for part in ("train", "val")}
    return read_coco(PHOTOGRAPHS, files, lambda _: PHOTOGRAPHS / "images", limit=30)


def folder(root: Path, **keys: object) -> FolderDataset:
    return FolderDataset.model_validate({"kind": "folder", "root": root, **keys})


def expected(data: Data) -> dict[str, dict[str, tuple[tuple[str, Corners], ...]]]:
    return {part: {name: picture.things for name, picture in pictures.items()} for part, pictures in data.parts.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("source", ["digits", "photographs"])
def test_every_layout_gives_the_same_data(
    layout: str, source: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    data: Data = request.getfixturevalue(source)
    before = LAYOUTS[layout](tmp_path / "data", data)
    names = sorted(path for path in before.rglob("*"))
    splits = split_folder(folder(before))
    found = read_back(splits.annotations)
    for part, pictures in expected(data).items():
        assert found[part].keys() == pictures.keys()
        for name, things in pictures.items():
            # A share has eight digits in these files.
            assert [name for name, _ in found[part][name]] == [name for name, _ in things]
            numbers, known = (np.array([corners for _, corners in each]) for each in (found[part][name], things))
            np.testing.assert_allclose(numbers, known, atol=0.002)
    opened = open_dataset(folder(before))
    assert set(opened.classes) == set(data.classes)
    assert sorted(path for path in before.rglob("*")) == names
    assert splits.layout.format == layout[: len(splits.layout.format)]


def test_the_same_data_in_one_part_are_divided_in_the_same_way_in_every_layout(digits: Data, tmp_path: Path) -> None:
    chosen = set()
    for number, write in enumerate(LAYOUTS.values()):
        whole = Data(digits.classes, {"train": digits.whole})
        splits = split_folder(folder(write(tmp_path / str(number), whole)))
        found = read_back(splits.annotations)
        assert set(found["train"]) | set(found["val"]) == set(digits.whole)
        assert not set(found["train"]) & set(found["val"])
        chosen.add(frozenset(found["val"]))
    assert len(chosen) == 1


def test_bdd(tmp_path: Path) -> None:
    parts = {"train": {"a.jpg": [Thing("car", (10, 12, 300, 200))]}, "val": {"b.jpg": [Thing("bus", (5, 6, 80, 90))]}}
    for part, images in parts.items():
        for name, things in images.items():
            write_image(tmp_path / "images" / "100k" / part / name, things, (1280, 720))
        write_json(tmp_path / "labels" / f"bdd100k_labels_images_{part}.json", bdd_frames_of_2018(images))
    splits = split_folder(folder(tmp_path))
    assert splits.layout.format == "bdd"
    found = read_back(splits.annotations)
    assert found == {
        "train": {"a.jpg": (("car", (10, 12, 300, 200)),)},
        "val": {"b.jpg": (("bus", (5, 6, 80, 90)),)},
    }
    assert open_dataset(folder(tmp_path)).classes[0] == "pedestrian"


def test_in_pascal_vocs_own_files_pixels_are_counted_from_one(tmp_path: Path, digits: Data) -> None:
    root = write_voc_sets(tmp_path, digits)
    for path in (root / "Annotations").iterdir():
        path.write_text(path.read_text().replace("Unknown", "The VOC2007 Database"))
    found = read_back(split_folder(folder(root)).annotations)
    things = digits.parts["val"]
    for name, picture in things.items():
        moved = [tuple(number - 1 for number in corners) for _, corners in picture.things]
        assert [corners for _, corners in found["val"][name]] == moved


def test_a_mask_without_a_box_becomes_the_box_around_it(tmp_path: Path, digits: Data) -> None:
    picture = next(picture for picture in digits.parts["train"].values() if picture.things)
    content = coco_content({picture.file.name: picture, "2.png": picture}, digits.classes)
    left, top, right, bottom = picture.things[0][1]
    (first, *_) = content["annotations"]
    del first["bbox"]
    first["segmentation"] = [[left, top, right, top, right, bottom]]
    for name in (picture.file.name, "2.png"):
        (tmp_path / name).write_bytes(picture.file.read_bytes())
    write_json(tmp_path / "export.json", content)
    splits = split_folder(folder(tmp_path))
    found = read_back(splits.annotations)
    assert {**found["train"], **found["val"]}[picture.file.name] == picture.things


def test_the_size_of_a_photograph_is_the_one_that_its_exif_data_turn_it_to(tmp_path: Path) -> None:
    for name in ("a", "b"):
        image = Image.new("RGB", (40, 20), (200, 10, 10 if name == "a" else 90))
        exif = image.getexif()
        exif[274] = 6
        image.save(tmp_path / f"{name}.jpg", exif=exif)
        (tmp_path / f"{name}.txt").write_text("0 0.5 0.5 1 0.5")
    (tmp_path / "classes.txt").write_text("thing\n")
    content = json.loads(split_folder(folder(tmp_path)).annotations["train"].read_bytes())
    assert [(image["width"], image["height"]) for image in content["images"]] == [(20, 40)]
    assert content["annotations"][0]["bbox"] == [0, 10, 20, 20]
