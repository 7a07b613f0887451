"""Detections drawn beside the ground truth of validation images, as in Figs 9 to 11 of SM-NAS."""

import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont, truetype
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes

from smnas_optuna.errors import UserError
from smnas_optuna.timing.device_lock import DeviceLock
from smnas_optuna.training.checkpoint import load_trained
from smnas_optuna.training.job import Comparison
from smnas_optuna.training.trial_folder import check_record

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom in pixels of a cell, the last two just outside

# Okabe & Ito (2008), told apart by the colour-blind too; neighbouring classes far apart.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_CASING: Colour = (20, 20, 20)
_INK, _FAINT, _PAPER = (20, 20, 20), (95, 95, 95), (255, 255, 255)
_CELL = 480  # longer side of an image as it is drawn, in pixels
_LINE = 3  # width of a box's line, to which its dark casing adds a pixel on either side
_MARGIN, _GAP = 16, 12
_BOLD, _PLAIN = "DejaVuSans-Bold.ttf", "DejaVuSans.ttf"
_QUALITY = 90
_IMAGES_OF_A_TRIAL = 3
_THRESHOLD_OF_A_TRIAL = 0.5


@dataclass(frozen=True)
class LabelledBox:
    """An object of the ground truth, or a detection.

    Args:
        corners: Left, top, right and bottom in pixels of the original image.
        label: Index of the class.
        name: Of the class.
        score: 0 to 1; None for ground truth.
    """

    corners: tuple[float, float, float, float]
    label: int
    name: str
    score: float | None = None

    @property
    def colour(self) -> Colour:
        """The class's, in every picture."""
        return PALETTE[self.label % len(PALETTE)]


@dataclass(frozen=True)
class Panel:
    """A column of a picture.

    Args:
        title: Heads it, in one line.
        text: Below the title, wrapped.
        boxes: Of each image.
        captions: Above each image.
    """

    title: str
    text: str
    boxes: tuple[tuple[LabelledBox, ...], ...]
    captions: tuple[str, ...]


def draw(comparison: Comparison, _: Callable[[object], None]) -> None:
    """Draw trained detectors side by side.

    On the CPU: a search that goes on meanwhile may need all of its GPU's memory.

    Raises:
        UserError: There is no such image, the data set is gone, weights are another trial's, or the picture cannot be
            written.
    """
    from mmdet.apis import init_detector  # needs mmcv's operators, which smnas_optuna.detector.layers provides

    lock = DeviceLock.of("cpu", str(comparison.path))
    datasets = [_open_split(column.folder / "config.py") for column in comparison.columns]
    chosen, first = comparison.images, datasets[0]
    # Of one data set, so an index means the same image to all.
    indices = annotated_images(first, chosen) if isinstance(chosen, int) else named_images(first, chosen)
    images = [_load_present(first, index) for index in indices]
    panels = [_ground_truth_panel(first, indices)]
    for column, dataset in zip(comparison.columns, datasets, strict=True):
        weights = column.folder / "weights.pth"
        check_record(str(weights), load_trained(str(weights), weights)["meta"], column.belonging, column.architecture)
        model = init_detector(str(column.folder / "config.py"), str(weights), device="cpu")
        found = [detect(model, dataset, index, comparison.threshold, lock) for index in indices]
        panels.append(_panel_of_detections(column.title, column.architecture, found))
    picture = compose(images, panels)
    try:
        _save(picture, comparison.path)
    except OSError as error:
        raise UserError(f"--save {comparison.path}: cannot be written: {error.strerror or error}") from None


def draw_trained(model: Any, dataset: Any, title: str, text: str, path: Path, lock: DeviceLock) -> None:
    """Draw what a detector that has just been trained finds in a few images of a split.

    Args:
        model: An MMDetection detector in evaluation mode.
        dataset: The split, with the detector's test pipeline.
        title: Heads the column.
        text: Below the title.
        path: Of the picture, whose suffix tells its format.
        lock: Of the device that the model is on.

    Raises:
        OSError: An image cannot be read, or the picture not be written.
    """
    indices = annotated_images(dataset, _IMAGES_OF_A_TRIAL)
    found = [detect(model, dataset, index, _THRESHOLD_OF_A_TRIAL, lock) for index in indices]
    panels = [_ground_truth_panel(dataset, indices), _panel_of_detections(title, text, found)]
    _save(compose([_load(dataset, index) for index in indices], panels), path)


def annotated_images(dataset: Any, count: int) -> list[int]:
    """Return the indices of so many images with objects, spread over a split; fewer where it has no more.

    The same split gives the same images, whatever the detector.
    """
    chosen: list[int] = []
    for part in range(count):
        start = part * len(dataset) // count
        following = (index % len(dataset) for index in range(start, start + len(dataset)))
        chosen += next(([index] for index in following if index not in chosen and _has_objects(dataset, index)), [])
    return sorted(chosen)


def named_images(dataset: Any, names: Sequence[str]) -> list[int]:
    """Return the indices of images by their file names, as the split's annotations have them.

    Raises:
        UserError: There is no such image.
    """
    known = {_file_name(dataset, index): index for index in range(len(dataset))}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise UserError(f"--images {name}: no such image in {dataset.ann_file}; did you mean {near[0]}?")
    return [known[name] for name in names]


def ground_truth(dataset: Any, index: int) -> tuple[LabelledBox, ...]:
    """Return the objects of an image; a box around a crowd says that it is one."""
    classes = dataset.metainfo["classes"]
    return tuple(
        LabelledBox(
            tuple(instance["bbox"]),
            instance["bbox_label"],
            classes[instance["bbox_label"]] + (" (crowd)" if instance["ignore_flag"] else ""),
        )
        for instance in dataset.get_data_info(index)["instances"]
    )


def detect(model: Any, dataset: Any, index: int, threshold: float, lock: DeviceLock) -> tuple[LabelledBox, ...]:
    """Return what a detector in evaluation mode finds in an image, the surest first.

    Args:
        model: An MMDetection detector.
        dataset: With the detector's test pipeline.
        index: Of the image.
        threshold: Lowest score, 0 to 1.
        lock: Of the device that the model is on, which is shared with others but not with one who times.
    """
    batch = pseudo_collate([dataset[index]])
    lock.join()
    try:
        with torch.inference_mode():
            found = model.test_step(batch)[0].pred_instances.cpu()
    finally:
        lock.leave()
    classes = dataset.metainfo["classes"]
    boxes = [
        LabelledBox(tuple(corners), label, classes[label], score)
        for corners, label, score in zip(
            found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True
        )
        if score >= threshold
    ]
    return tuple(sorted(boxes, key=lambda box: -(box.score or 0.0)))


def draw_boxes(image: NDArray[np.uint8], boxes: Sequence[LabelledBox]) -> Image.Image:
    """Return an image scaled to a cell of a picture, with boxes and their labels.

    Args:
        image: ``height x width x 3``, RGB.
        boxes: Where two labels cannot but overlap, the earlier box's is on top.
    """
    height, width = image.shape[:2]
    scale = _CELL / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    cell = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    if not boxes:
        return cell
    rectangles = [_scaled(box.corners, size[0] / width, size[1] / height) for box in boxes]
    pixels = pil_to_tensor(cell)
    # Where a line is hardly seen on a light image its casing is, and the other way round.
    for grow, colours in ((1, [_CASING for _ in boxes]), (0, [box.colour for box in boxes])):
        # Both ends of torchvision's boxes are drawn.
        outlines = torch.tensor(
            [(left - grow, top - grow, right - 1 + grow, bottom - 1 + grow) for left, top, right, bottom in rectangles]
        )
        pixels = draw_bounding_boxes(pixels, outlines, colors=colours, width=_LINE + 2 * grow)
    drawn: Image.Image = to_pil_image(pixels)
    _draw_labels(drawn, boxes, rectangles)
    return drawn


def compose(images: Sequence[NDArray[np.uint8]], panels: Sequence[Panel]) -> Image.Image:
    """Return a picture with a row per image and a column per panel."""
    columns = [[draw_boxes(image, boxes) for image, boxes in zip(images, panel.boxes, strict=True)] for panel in panels]
    width = max((cell.width for column in columns for cell in column), default=_CELL)
    headings = [_heading(panel, width) for panel in panels]
    font = _font(_PLAIN, 15)
    top_row = _MARGIN + max(heading.height for heading in headings) + _GAP
    rows = sum(_line_height(font) + cell.height + _GAP for cell in columns[0])
    picture = Image.new("RGB", (2 * _MARGIN + len(panels) * (width + _GAP) - _GAP, top_row + rows), _PAPER)
    draw = ImageDraw.Draw(picture)
    for number, (heading, panel, cells) in enumerate(zip(headings, panels, columns, strict=True)):
        left, top = _MARGIN + number * (width + _GAP), top_row
        picture.paste(heading, (left, _MARGIN))
        for caption, cell in zip(panel.captions, cells, strict=True):
            draw.text((left, top), _shorten(caption, "", font, width), fill=_FAINT, font=font)
            picture.paste(cell, (left, top + _line_height(font)))
            top += _line_height(font) + cell.height + _GAP
    return picture


def _heading(panel: Panel, width: int) -> Image.Image:
    bold, plain = _font(_BOLD, 17), _font(_PLAIN, 15)
    lines = [
        (line, font) for text, font in ((panel.title, bold), (panel.text, plain)) for line in _wrap(text, font, width)
    ]
    heading = Image.new("RGB", (width, sum(_line_height(font) for _, font in lines)), _PAPER)
    top = 0
    for line, font in lines:
        ImageDraw.Draw(heading).text((0, top), line, fill=_INK, font=font)
        top += _line_height(font)
    return heading


def _ground_truth_panel(dataset: Any, indices: Sequence[int]) -> Panel:
    boxes = tuple(ground_truth(dataset, index) for index in indices)
    return Panel("ground truth", "", boxes, tuple(_file_name(dataset, index) for index in indices))


def _panel_of_detections(title: str, text: str, found: Sequence[tuple[LabelledBox, ...]]) -> Panel:
    captions = (f"{len(boxes) or 'no'} detection{'s' if len(boxes) != 1 else ''}" for boxes in found)
    return Panel(title, text, tuple(found), tuple(captions))


def _open_split(config_file: Path) -> Any:
    """Open the validation split that a trial's config names."""
    settings = Config.fromfile(config_file).test_dataloader.dataset
    if not Path(settings.ann_file).is_file():
        raise UserError(f"{settings.ann_file}: no such file; expected the validation split that {config_file} names")
    return DATASETS.build(settings)


def _load_present(dataset: Any, index: int) -> NDArray[np.uint8]:
    try:
        return _load(dataset, index)
    except OSError as error:
        path = dataset.get_data_info(index)["img_path"]
        raise UserError(f"{path}: cannot be read: {error.strerror}; {dataset.ann_file} lists it") from None


def _load(dataset: Any, index: int) -> NDArray[np.uint8]:
    """Load an image as the detector's pipeline does."""
    image: NDArray[np.uint8] = mmcv.imread(dataset.get_data_info(index)["img_path"], channel_order="rgb")
    return image


def _has_objects(dataset: Any, index: int) -> bool:
    return any(not instance["ignore_flag"] for instance in dataset.get_data_info(index)["instances"])


def _file_name(dataset: Any, index: int) -> str:
    path: str = dataset.get_data_info(index)["img_path"]
    return os.path.relpath(path, dataset.data_prefix["img"])


def _save(picture: Image.Image, path: Path) -> None:
    # Colours at full resolution, for the sake of thin lines and small letters; PNG takes no notice of either.
    picture.save(path, quality=_QUALITY, subsampling=0)


def _scaled(corners: tuple[float, float, float, float], across: float, down: float) -> Rectangle:
    left, top = round(corners[0] * across), round(corners[1] * down)
    return left, top, max(left + 1, round(corners[2] * across)), max(top + 1, round(corners[3] * down))


def _draw_labels(cell: Image.Image, boxes: Sequence[LabelledBox], rectangles: Sequence[Rectangle]) -> None:
    font = _font(_PLAIN, 14)
    draw = ImageDraw.Draw(cell)
    height = _line_height(font)
    labels: list[tuple[Rectangle, str, Colour]] = []
    for box, rectangle in zip(boxes, rectangles, strict=True):
        score = "" if box.score is None else f" {box.score:.2f}"
        text = _shorten(box.name, score, font, cell.width - 4)
        place = place_label(
            (round(font.getlength(text)) + 4, height),
            rectangle,
            rectangles,
            [taken for taken, _, _ in labels],
            cell.size,
        )
        labels.append((place, text, box.colour))
    for (left, top, right, bottom), text, colour in reversed(labels):
        draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)
        draw.text((left + 2, top), text, fill=_ink_on(colour), font=font)


def place_label(
    size: tuple[int, int],
    own: Rectangle,
    boxes: Sequence[Rectangle],
    taken: Sequence[Rectangle],
    cell: tuple[int, int],
) -> Rectangle:
    """Return where a label goes: at its box and within the cell, where it covers least of objects and other labels."""
    width, height = size

    def covered(label: Rectangle) -> int:
        return sum(_overlap(label, box) for box in boxes) + 4 * sum(_overlap(label, other) for other in taken)

    def within(left: int, top: int) -> Rectangle:
        left, top = max(0, min(left, cell[0] - width)), max(0, min(top, cell[1] - height))
        return left, top, left + width, top + height

    return min((within(left, top) for left, top in _beside(own, width, height)), key=covered)


def _beside(box: Rectangle, width: int, height: int) -> Iterator[tuple[int, int]]:
    """Yield the left upper corners that a label at a box may have, the most usual first."""
    left, top, right, bottom = box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1  # with the casing
    for y in (top - height, bottom):
        yield left, y
        yield right - width, y
    for x in (right, left - width):
        yield x, top
        yield x, bottom - height
    yield left, top
    yield left, bottom - height


def _overlap(one: Rectangle, other: Rectangle) -> int:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0) * max(down, 0)


def _ink_on(colour: Colour) -> Colour:
    """Return black or white, whichever is read better on a colour (WCAG 2's relative luminance)."""
    linear = [value / 3294.6 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 1.05 * 0.05 else (255, 255, 255)


def _wrap(text: str, font: FreeTypeFont, width: int) -> list[str]:
    """Break a text at blanks into lines of at most ``width`` pixels, and words that are longer anywhere."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines


def _shorten(text: str, end: str, font: FreeTypeFont, width: int) -> str:
    """Return ``text`` and ``end``, the text cut short where both together are wider than ``width`` pixels."""
    shown = text
    while len(text) > 1 and font.getlength(shown + end) > width:
        text = text[:-1]
        shown = f"{text}\N{HORIZONTAL ELLIPSIS}"
    return shown + end


def _line_height(font: FreeTypeFont) -> int:
    return sum(font.getmetrics())


@cache
def _font(name: str, size: int) -> FreeTypeFont:
    """Load a font that ships with Matplotlib, which MMEngine and MMDetection require."""
    return truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", name), size)
