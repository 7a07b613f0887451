from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from smnas_optuna.training.picture import PALETTE, LabelledBox, Panel, compose, draw_boxes, place_label

GREY = np.full((120, 160, 3), 128, np.uint8)


def has_colour(pixels: NDArray[np.uint8], label: int) -> NDArray[np.bool_]:
    coloured: NDArray[np.bool_] = (pixels == np.array(PALETTE[label])).all(axis=-1)
    return coloured


def test_a_box_is_drawn_along_its_edges_and_does_not_hide_its_object() -> None:
    # The cell is 480 pixels wide, three times the width of the image.
    drawn = np.asarray(draw_boxes(GREY, [LabelledBox((40, 30, 120, 90), 4, "cup", 0.9)]))
    assert drawn.shape == (360, 480, 3)
    coloured = has_colour(drawn, 4)
    assert coloured[90:93, 120:360].all()
    assert coloured[267:270, 120:360].all()
    assert coloured[90:270, 120:123].all()
    assert coloured[90:270, 357:360].all()
    # Dark beside the line, then the image.
    assert (drawn[93, 123:357] < 30).all()
    assert (drawn[94:266, 124:356] == 128).all()
    # Above the box is its label.
    outside = np.ones((360, 480), np.bool_)
    outside[89:271, 119:361] = False
    changed = outside & (drawn != 128).any(axis=-1)
    rows, columns = np.nonzero(changed)
    assert (rows.max(), columns.min()) == (88, 119)
    assert 12 <= np.ptp(rows) <= 20


def test_a_box_is_visible_on_an_image_of_the_same_colour() -> None:
    for label, colour in enumerate(PALETTE):
        image = np.full((120, 160, 3), colour, np.uint8)
        drawn = np.asarray(draw_boxes(image, [LabelledBox((40, 30, 120, 90), label, "cup")]))
        assert (drawn[89, 120:360] < 30).all()


@pytest.mark.parametrize(
    ("size", "expected"), [((160, 120), (480, 360)), ((2000, 1000), (480, 240)), ((30, 60), (240, 480))]
)
def test_small_images_are_enlarged_and_large_ones_reduced(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert draw_boxes(np.zeros((size[1], size[0], 3), np.uint8), ()).size == expected


@given(st.data())
def test_a_label_touches_its_box_stays_inside_the_image_and_covers_objects_only_if_it_must(data: st.DataObject) -> None:
    across, down = data.draw(st.tuples(st.integers(100, 480), st.integers(60, 480)))
    width, height = data.draw(st.tuples(st.integers(8, 100), st.integers(8, 20)))
    left, right = sorted(data.draw(st.lists(st.integers(0, across), min_size=2, max_size=2, unique=True)))
    top, bottom = sorted(data.draw(st.lists(st.integers(0, down), min_size=2, max_size=2, unique=True)))
    box = (left, top, right, bottom)
    label = place_label((width, height), box, [box], [], (across, down))
    assert (label[2] - label[0], label[3] - label[1]) == (width, height)
    assert min(label) >= 0
    assert label[2] <= across
    assert label[3] <= down
    # Only the pixel of the casing may be between label and box.
    assert label[0] <= right + 1
    assert label[2] >= left - 1
    assert label[1] <= bottom + 1
    assert label[3] >= top - 1
    has_room = top >= height or down - bottom >= height or left >= width or across - right >= width
    covers = label[0] < right and label[2] > left and label[1] < bottom and label[3] > top
    assert covers != has_room


def test_labels_of_overlapping_objects_do_not_overlap() -> None:
    taken: list[tuple[int, int, int, int]] = []
    box = (100, 100, 200, 200)
    for _ in range(4):
        taken.append(place_label((60, 18), box, [box], taken, (480, 360)))
    grid = np.zeros((360, 480), int)
    for left, top, right, bottom in taken:
        grid[top:bottom, left:right] += 1
    assert grid.max() == 1


def test_a_class_has_one_colour_in_every_column_and_neighbouring_classes_have_different_ones() -> None:
    boxes = [LabelledBox((10 + 70 * label, 20, 60 + 70 * label, 90), label, f"class {label}") for label in range(2)]
    detections = [replace(box, score=0.8) for box in boxes]
    panels = [
        Panel("ground truth", "", (tuple(boxes),), ("a.png",)),
        # Found in another order, and one of them only.
        Panel("trial 3", "an architecture", (tuple(reversed(detections)),), ("2 detections",)),
        Panel("trial 7", "another", (tuple(detections[1:]),), ("1 detection",)),
    ]
    picture = np.asarray(compose([GREY], panels))
    starts = [16, 16 + 480 + 12, 16 + 2 * (480 + 12)]
    assert picture.shape[1] == starts[-1] + 480 + 16
    truth, first, second = (
        [has_colour(picture[:, start : start + 480], label) for label in range(3)] for start in starts
    )
    for label in range(2):
        left = 3 * (10 + 70 * label)
        rows = np.nonzero(truth[label][:, left + 75])[0]
        assert len(rows) >= 6
        # The lower edge; above there are labels of different length.
        assert (truth[label][rows[-3:], left : left + 150]).all()
        assert (first[label][rows[-3:], left : left + 150]).all()
    assert not truth[2].any()
    assert not second[0].any()
    assert second[1].any()


def test_a_long_architecture_is_wrapped_and_all_columns_start_at_the_same_height() -> None:
    code = "800x600 bottleneck_56_211-1111111111111111111111111111111111111111111111111-2111111-11112111 RPN 2FC"
    short, long = (
        compose([GREY], [Panel("ground truth", "", ((),), ("a.png",)), Panel("trial 1", text, ((),), ("none",))])
        for text in ("RetinaNet", code)
    )
    assert short.width == long.width
    lines = (long.height - short.height) / 18
    assert 2 <= lines <= 4
    pixels = np.asarray(long)
    assert (pixels[:, 16 + 2 * 480 + 12 :] == 255).all()
    for left in (16, 16 + 480 + 12):
        image = (pixels[:, left : left + 480] == 128).all(axis=(1, 2))
        assert np.flatnonzero(image).tolist() == list(range(long.height - 16 - 12 - 360 + 16, long.height - 12))


def test_a_name_wider_than_the_image_is_shortened_but_its_score_is_not() -> None:
    long = LabelledBox((0, 0, 160, 120), 1, "a very long name of a class " * 5, 0.87)
    drawn = np.asarray(draw_boxes(GREY, [long]))
    longer = np.asarray(draw_boxes(GREY, [replace(long, name=long.name * 2)]))
    other_score = np.asarray(draw_boxes(GREY, [replace(long, score=0.42)]))
    assert (drawn == longer).all()
    columns = np.nonzero((drawn != other_score).any(axis=(0, 2)))[0]
    assert columns.min() > 430
    assert columns.max() < 479
