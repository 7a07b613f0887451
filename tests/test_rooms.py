"""The arrangement of the code: what ``docs/architecture.md`` says of rooms and imports."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "smnas_optuna"

# Imports every module of a room where torch cannot be imported.
WITHOUT_TORCH = """
import importlib, pkgutil, sys

class NoTorch:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torch":
            raise ImportError(name)

sys.meta_path.insert(0, NoTorch())
room = importlib.import_module(f"smnas_optuna.{sys.argv[1]}")
for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
    importlib.import_module(module.name)
"""


@pytest.fixture(scope="module")
def rooms() -> Any:
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_room_imports_only_rooms_below_it(rooms: Any) -> None:
    floors = list(rooms.rooms())
    pairs = rooms.imports()
    assert pairs
    assert [pair for pair in pairs if floors.index(pair[0]) > floors.index(pair[1])] == []
    assert [pair for pair in pairs if pair[0] == "samplers"] == []


def test_the_picture_is_that_of_the_imports(rooms: Any) -> None:
    assert rooms.PICTURE.read_text(encoding="utf-8") == rooms.picture(), "python docs/rooms.py draws it anew"


def test_every_folder_is_a_room_and_every_other_module_a_command(rooms: Any) -> None:
    named = rooms.rooms()
    called = {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - called
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"} | called
    shared = {"errors", "command_line"}
    assert set(named) == {"commands", *folders, *shared}
    assert {f"`{name}`" for name in modules - shared} == set(
        named["commands"].removeprefix("what a user calls: ").split(", ")
    )


@pytest.mark.parametrize("room", ["parts", "search_space", "recipe", "data", "study"])
def test_what_describes_a_search_needs_no_torch(room: str) -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, room], cwd=ROOT, check=True)
