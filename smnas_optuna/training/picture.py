"""Pictures of detections: images side by side, with labelled boxes that hide neither objects nor each other.

MMDetection's DetLocalVisualizer draws one detector beside the ground truth, with each label inside its box, where it
hides the object and other labels. This module draws several detectors side by side, with the labels beside the boxes.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont, truetype

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom in pixels of a cell; right and bottom are exclusive

# Okabe & Ito (2008), distinguishable with colour blindness; ordered so that neighbouring classes differ strongly.
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
_CELL = 480  # longer side of a drawn image, in pixels
_LINE = 3  # width of a box's line in pixels; the dark casing adds a pixel on either side
_MARGIN, _GAP = 16, 12
_BOLD, _PLAIN = "DejaVuSans-Bold.ttf", "DejaVuSans.ttf"


@dataclass(frozen=True)
class LabelledBox:
    """An object of the ground truth, or a detection.

    Args:
        corners: Left, top, right and bottom in pixels of the original image.
        label: Index of the class.
        name: Name of the class.
        score: Score of a detection, 0 to 1; None for ground truth.
    """

    corners: tuple[float, float, float, float]
    label: int
    name: str
    score: float | None = None

    @property
    def colour(self) -> Colour:
        """Colour of the class, the same in every picture."""
        return PALETTE[self.label % len(PALETTE)]


@dataclass(frozen=True)
class Panel:
    """A column of a picture.

    Args:
        title: Heading of the column, one line.
        text: Text below the heading; it is wrapped.
        boxes: Boxes of each image.
        captions: Text above each image.
    """

    title: str
    text: str
    boxes: tuple[tuple[LabelledBox, ...], ...]
    captions: tuple[str, ...]


def compose(images: Sequence[NDArray[np.uint8]], panels: Sequence[Panel]) -> Image.Image:
    """Return a picture with a row per image and a column per panel.

    Args:
        images: RGB images, ``height x width x 3`` each.
        panels: Columns, each with boxes and captions for all images.
    """
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


def draw_boxes(image: NDArray[np.uint8], boxes: Sequence[LabelledBox], longest: int = _CELL) -> Image.Image:
    """Return a scaled image with boxes and their labels.

    Args:
        image: RGB image, ``height x width x 3``.
        boxes: Boxes to draw. If two labels have to overlap, that of the earlier box is on top.
        longest: Longer side of the result, in pixels.
    """
    height, width = image.shape[:2]
    scale = longest / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    cell = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    rectangles = [_scaled(box.corners, size[0] / width, size[1] / height) for box in boxes]
    draw = ImageDraw.Draw(cell)
    # The dark casing is visible on light images, and the line on dark ones. Pillow's rectangles include both corners.
    for left, top, right, bottom in rectangles:
        draw.rectangle((left - 1, top - 1, right, bottom), outline=_CASING, width=_LINE + 2)
    for box, (left, top, right, bottom) in zip(boxes, rectangles, strict=True):
        draw.rectangle((left, top, right - 1, bottom - 1), outline=box.colour, width=_LINE)
    _draw_labels(cell, boxes, rectangles)
    return cell


def place_label(
    size: tuple[int, int],
    box: Rectangle,
    boxes: Sequence[Rectangle],
    taken: Sequence[Rectangle],
    cell: tuple[int, int],
) -> Rectangle:
    """Return the place beside a box where the label covers least of the objects and of other labels.

    Args:
        size: Width and height of the label, in pixels.
        box: The box that is labelled.
        boxes: All boxes of the image.
        taken: Labels that have been placed before.
        cell: Width and height of the cell, which the label does not leave.
    """
    width, height = size

    def covered(label: Rectangle) -> int:
        return sum(_overlap(label, each) for each in boxes) + 4 * sum(_overlap(label, other) for other in taken)

    def within(left: int, top: int) -> Rectangle:
        left, top = max(0, min(left, cell[0] - width)), max(0, min(top, cell[1] - height))
        return left, top, left + width, top + height

    return min((within(left, top) for left, top in _beside(box, width, height)), key=covered)


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


def _beside(box: Rectangle, width: int, height: int) -> Iterator[tuple[int, int]]:
    """Yield the possible top left corners of a box's label, the preferred one first."""
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
    """Return black or white, whichever has the higher contrast on a colour (WCAG 2's relative luminance)."""
    linear = [value / 3294.6 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 1.05 * 0.05 else (255, 255, 255)


def _wrap(text: str, font: FreeTypeFont, width: int) -> list[str]:
    """Break a text into lines of at most ``width`` pixels, at blanks, and within words that are longer than a line."""
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
    """Return ``text`` followed by ``end``, with the text shortened to fit both into ``width`` pixels."""
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
