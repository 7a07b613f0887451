"""Tables of a data set's contents and faults, for the terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from smnas_optuna.data.inspection import Fault, Spread, Summary

_SHOWN_IMAGE_SIZES = 3


def show_summaries(summaries: Mapping[str, Summary], out: Console) -> None:
    """Print tables of the images, boxes and classes of each split.

    Args:
        summaries: Summaries by the names of the splits.
        out: Console to print on.
    """
    if not summaries:
        return
    for table in (_contents(summaries), _classes(summaries), _box_sizes(summaries)):
        out.print(table)


def show_faults(faults: Sequence[Fault], out: Console) -> None:
    """Print faults, those that stop a search first."""
    for fault in sorted(faults, key=lambda fault: not fault.stops):
        out.print(f"{'error' if fault.stops else 'warning'}: {fault}", soft_wrap=True)
        for example in fault.examples:
            out.print(f"    {example}", soft_wrap=True)
        if fault.count > len(fault.examples) > 0:
            out.print(f"    and {fault.count - len(fault.examples):,} more")
    if not faults:
        out.print("no fault found")


def _contents(summaries: Mapping[str, Summary]) -> Table:
    table = _table("Images and boxes", ["", *summaries], words=1)
    for title, values in (
        ("images", [f"{each.images:,}" for each in summaries.values()]),
        ("  without boxes", [f"{each.empty_images:,}" for each in summaries.values()]),
        ("  width x height", [_image_sizes(each.image_sizes) for each in summaries.values()]),
        ("boxes", [f"{each.boxes:,}" for each in summaries.values()]),
        ("  crowd or difficult", [f"{each.crowds:,}" for each in summaries.values()]),
        ("  ignored in training", [f"{each.passed_over:,}" for each in summaries.values()]),
        ("boxes per image", [_spread(each.boxes_per_image) for each in summaries.values()]),
        ("box width / height", [_spread(each.aspect_ratio, 2) for each in summaries.values()]),
    ):
        table.add_row(title, *values)
    return table


def _classes(summaries: Mapping[str, Summary]) -> Table:
    """Return a table of the number of boxes of each class, the most frequent class first."""
    table = _table(
        "Boxes of each class", ["class", *(heading for name in summaries for heading in (name, "%"))], words=1
    )
    counts = [each.boxes_per_class for each in summaries.values()]
    names = dict.fromkeys(name for each in counts for name in each)
    for name in sorted(names, key=lambda name: -sum(each.get(name, 0) for each in counts)):
        numbers = [(each.get(name, 0), sum(each.values())) for each in counts]
        table.add_row(name, *(text for number, total in numbers for text in (f"{number:,}", _share(number, total))))
    return table


def _box_sizes(summaries: Mapping[str, Summary]) -> Table:
    """Return a table of the sizes of boxes, in the original images and scaled to each input size."""
    headings = ["", "images", "small %", "medium %", "large %", "side in pixels"]
    table = _table("Box sizes (small: below 32x32 pixels, large: above 96x96)", headings, words=2)
    for name, each in summaries.items():
        for sizes in each.box_sizes:
            parts = (sizes.small, sizes.medium, sizes.large)
            scaled = f"scaled to {sizes.input_size}" if sizes.input_size else "as they are"
            table.add_row(name, scaled, *(_share(part, sum(parts)) for part in parts), _spread(sizes.side))
        table.add_section()
    return table


def _table(title: str, headings: Sequence[str], *, words: int) -> Table:
    """Return an empty table; its first ``words`` columns are left-aligned for words, the others are for numbers."""
    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < words else "right")
    return table


def _image_sizes(sizes: Mapping[str, int]) -> str:
    shown = [f"{size} ({number:,})" for size, number in list(sizes.items())[:_SHOWN_IMAGE_SIZES]]
    others = len(sizes) - len(shown)
    return "\n".join([*shown, *([f"{others:,} other sizes"] if others else [])])


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"


def _spread(spread: Spread | None, digits: int = 0) -> str:
    if spread is None:
        return "-"
    smallest, median, largest = (f"{value:.{digits}f}" for value in (spread.smallest, spread.median, spread.largest))
    return f"{smallest} to {largest}, median {median}"
