"""Draws which room of the package imports which, from the imports themselves.

    python docs/rooms.py

Rooms, their order and their reasons are those of the table in ``architecture.md``.
"""

import re
import sys
from collections import Counter
from html import escape
from pathlib import Path

import grimp

_FOLDER = Path(__file__).parent
PICTURE = _FOLDER / "rooms.svg"
_COMMANDS = "commands"
_ROW = re.compile(r"\| `?(\w+)`? \| (.+) \|")

# Of the picture, in pixels.
_ROW_HEIGHT = 34
_NAME_WIDTH = 150
_REASON_WIDTH = 520
_HEADING_HEIGHT = 110
_REASON_LETTERS = 90


def rooms() -> dict[str, str]:
    """Return the rooms and their reasons, from the top to the ground."""
    lines = (_FOLDER / "architecture.md").read_text(encoding="utf-8").splitlines()
    found = [match.groups() for match in map(_ROW.fullmatch, lines) if match]
    return {name: reason for name, reason in found if name != "room"}


def room_of(module: str) -> str:
    """Return the room of a module such as ``smnas_optuna.training.job``."""
    name = module.split(".")[1]
    return name if name in rooms() else _COMMANDS


def imports() -> Counter[tuple[str, str]]:
    """Return how many modules of one room import a module of another, by both rooms."""
    graph = grimp.build_graph("smnas_optuna")
    pairs = [
        (room_of(module), room_of(imported))
        for module in graph.modules - {"smnas_optuna"}
        for imported in graph.find_modules_directly_imported_by(module) - {"smnas_optuna"}
    ]
    return Counter(pair for pair in pairs if pair[0] != pair[1])


def picture() -> str:
    """Return the picture, as SVG: a row for each room, and a dot for each room that it imports."""
    names, counted = list(rooms()), imports()
    left = _NAME_WIDTH + _REASON_WIDTH
    width, height = left + len(names) * _ROW_HEIGHT + 10, _HEADING_HEIGHT + len(names) * _ROW_HEIGHT + 10
    shapes = []
    for row, (name, reason) in enumerate(rooms().items()):
        top, column = _HEADING_HEIGHT + row * _ROW_HEIGHT, left + row * _ROW_HEIGHT + _ROW_HEIGHT / 2
        middle = top + _ROW_HEIGHT / 2
        shapes += [
            f'<rect x="5" y="{top + 2}" width="{width - 10}" height="{_ROW_HEIGHT - 4}" rx="4" class="row"/>',
            f'<text x="16" y="{middle + 5}" class="room">{name}</text>',
            f'<text x="{_NAME_WIDTH}" y="{middle + 5}">{escape(_shortened(reason))}</text>',
            f'<text transform="translate({column + 4} {_HEADING_HEIGHT - 6}) rotate(-60)" class="room">{name}</text>',
            f'<rect x="{column - 5}" y="{middle - 5}" width="10" height="10" class="self"/>',
        ]
        for other, imported in enumerate(names):
            if count := counted[name, imported]:
                center = left + other * _ROW_HEIGHT + _ROW_HEIGHT / 2
                title = f"<title>{name} imports {imported}: {count}</title>"
                shapes.append(f'<circle cx="{center}" cy="{middle}" r="{3 + min(count, 12) / 2}">{title}</circle>')
    style = (
        "text{font:13px sans-serif;fill:#333}.room{font-weight:bold}.row{fill:#f1f4f8}"
        ".self{fill:#c5cedb}circle{fill:#2b6cb0}"
    )
    body = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">\n'
        f'<style>{style}</style>\n<rect width="{width}" height="{height}" fill="white"/>\n{body}\n</svg>\n'
    )


def _shortened(reason: str) -> str:
    """Return what of a reason has room in its row."""
    text = reason.replace("`", "")
    return text if len(text) <= _REASON_LETTERS else text[:_REASON_LETTERS].rpartition(" ")[0].rstrip(",") + " …"


if __name__ == "__main__":
    sys.path.insert(0, str(_FOLDER.parent))  # the package beside this file, wherever another one is installed
    PICTURE.write_text(picture(), encoding="utf-8")
    print(PICTURE)
