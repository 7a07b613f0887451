"""The validation part: shares of classes, copies and videos on one side, and the file that the user edits."""

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smnas_optuna.data.folder.similarity import group_similar
from smnas_optuna.data.folder.splitting import SHARE, read_split, split_validation, write_split
from smnas_optuna.errors import UserError
from tests.data.folder.test_layouts import PHOTOGRAPHS

Image = npt.NDArray[np.uint8]


def noise(seed: int) -> Image:
    """Return a picture that is unlike those of other seeds, as photographs are: coarse blobs."""
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 10, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (200, 160), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def write(folder: Path, **images: Image) -> list[Path]:
    for name, image in images.items():
        cv2.imwrite(str(folder / f"{name}.jpg"), image)
    return [folder / f"{name}.jpg" for name in images]


def test_copies_of_an_image_are_one_group(tmp_path: Path) -> None:
    first = noise(0)
    smaller, brighter = cv2.resize(first, (150, 120)), cv2.convertScaleAbs(first, alpha=1.1, beta=10)
    images = write(
        tmp_path, a=first, other=noise(1), smaller=np.asarray(smaller), more=noise(2), brighter=np.asarray(brighter)
    )
    assert group_similar(images) == [[0, 2, 4], [1], [3]]


def test_frames_of_a_video_are_one_group_although_its_ends_differ(tmp_path: Path) -> None:
    wide = np.concatenate([noise(seed) for seed in range(4)], axis=1)
    frames = {f"clip_{number:03}": np.ascontiguousarray(wide[:, 8 * number : 8 * number + 200]) for number in range(40)}
    images = write(tmp_path, **frames, still=noise(9))
    assert group_similar(images) == [list(range(40)), [40]]


def test_what_roboflow_makes_of_one_image_is_one_group(tmp_path: Path) -> None:
    names = [f"a_jpg.rf.{digest * 8}" for digest in ("0a1b", "2c3d", "4e5f")]
    images = write(tmp_path, **{name: noise(number) for number, name in enumerate(names)}, b=noise(9))
    assert group_similar(images) == [[0, 1, 2], [3]]


def test_images_of_one_colour_and_images_that_cannot_be_read_are_like_no_other(tmp_path: Path) -> None:
    images = write(tmp_path, a=np.full((20, 20, 3), 90, np.uint8), b=np.full((20, 20, 3), 90, np.uint8))
    (tmp_path / "c.jpg").write_text("no image")
    assert group_similar([*images, tmp_path / "c.jpg", tmp_path / "absent.jpg"]) == [[0], [1], [2], [3]]


def test_different_photographs_are_not_taken_for_copies() -> None:
    if not PHOTOGRAPHS.is_dir():
        pytest.skip("no photographs here")
    images = sorted((PHOTOGRAPHS / "images").iterdir())
    groups = group_similar(images)
    assert len(groups) > 0.9 * len(images)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.frozensets(st.sampled_from("abcd"), max_size=3), min_size=2, max_size=200),
    st.integers(0, 5),
)
def test_each_class_has_about_its_share(classes: list[frozenset[str]], seed: int) -> None:
    images = [Path(f"/nowhere/{seed}/{number}.jpg") for number in range(len(classes))]  # none like another
    chosen = split_validation(images, classes)
    wanted = max(1, round(SHARE * len(images)))
    assert 1 <= len(chosen) <= wanted
    assert chosen == sorted(set(chosen))
    total = Counter(name for each in classes for name in each or {""})
    found = Counter(name for index in chosen for name in classes[index] or {""})
    for name, number in total.items():
        if number < 1 / (2 * SHARE) and len(chosen) > 1:
            continue
        # Other classes on the same images may use up the part first.
        assert found[name] <= SHARE * number + 1 + 3 * SHARE * len(images) / 2
    assert split_validation(images, classes) == chosen


def test_classes_of_different_frequency_all_have_a_fifth_of_their_images() -> None:
    classes = [frozenset(["common"])] * 400 + [frozenset(["rare", "common"])] * 20 + [frozenset[str]()] * 80
    images = [Path(f"/nowhere/{number}.jpg") for number in range(len(classes))]
    found = Counter(name for index in split_validation(images, classes) for name in classes[index] or {"none"})
    assert found["rare"] == 4
    assert found["common"] == 84
    assert found["none"] == 16


def test_a_class_of_two_images_is_only_trained_on() -> None:
    classes = [frozenset(["rare"])] * 2 + [frozenset(["common"])] * 18
    chosen = split_validation([Path(f"/nowhere/{number}.jpg") for number in range(20)], classes)
    assert len(chosen) == 4
    assert not {0, 1} & set(chosen)


def test_copies_stay_together_and_a_long_video_is_divided_into_consecutive_pieces(tmp_path: Path) -> None:
    copies = {f"copy{number}": noise(0) for number in range(2)}
    single = {f"single{number}": noise(100 + number) for number in range(10)}
    images = write(tmp_path, **copies, **single)
    chosen = set(split_validation(images, [frozenset(["a"])] * len(images)))
    assert len(chosen & {0, 1}) != 1
    wide = np.concatenate([noise(seed) for seed in range(6)], axis=1)
    video = tmp_path / "video"
    video.mkdir()
    frames = {f"{number:03}": np.ascontiguousarray(wide[:, 8 * number : 8 * number + 200]) for number in range(50)}
    images = write(video, **frames)
    chosen_frames = split_validation(images, [frozenset(["a"])] * 50)
    assert len(chosen_frames) == 10
    assert chosen_frames[-1] - chosen_frames[0] == 9


def test_the_file_is_read_as_it_was_written_and_edited(tmp_path: Path) -> None:
    path, known = tmp_path / "new" / "validation.txt", ["a/1.jpg", "a/2 b.jpg", "c.jpg"]
    write_split(path, tmp_path, known[:2])
    assert read_split(path, known) == known[:2]
    path.write_text(path.read_text().replace("a/1.jpg\n", "\n  c.jpg \n"))
    assert read_split(path, known) == ["c.jpg", "a/2 b.jpg"]
    for names, message in (
        ("", "lists no image; expected some to validate on and some to train on"),
        ("\n".join(known), "lists all images; expected some to validate on and some to train on"),
    ):
        path.write_text(names)
        with pytest.raises(UserError, match=f"^dataset.validation: {path}: {message}$"):
            read_split(path, known)
    path.write_text("# mine\nd.jpg\n")
    with pytest.raises(UserError, match=f"^dataset.validation: {path}:2: no image 'd.jpg' with labels in the data"):
        read_split(path, known)
    path.unlink()
    with pytest.raises(UserError, match=r"^dataset.validation: .* cannot be read: "):
        read_split(path, known)
