"""The sampler's folder can be published in OptunaHub's registry as it is."""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "samplers" / "partial_order_pruning"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
MOST_BYTES = 200_000


def imported(path: Path) -> Iterator[str]:
    """Yield the packages that a file imports from elsewhere."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).partition(".")[0]


def test_the_readme_begins_with_what_the_registry_asks_for() -> None:
    _, header, text = README.split("---\n", 2)
    fields = yaml.safe_load(header)
    assert list(fields) == ["author", "title", "description", "tags", "optuna_versions", "license"]
    assert all(isinstance(fields[name], str) for name in ("author", "title", "description", "license"))
    assert all(isinstance(each, str) for name in ("tags", "optuna_versions") for each in fields[name])
    assert "sampler" in fields["tags"]
    assert fields["license"] == "MIT License"
    sections = re.findall("^## (.+)$", text, re.MULTILINE)
    assert sections[:4] == ["Abstract", "APIs", "Installation", "Example"]


def test_all_files_of_a_package_are_there() -> None:
    assert all((FOLDER / name).is_file() for name in ("__init__.py", "example.py", "LICENSE", "requirements.txt"))


def test_it_imports_only_what_it_requires() -> None:
    names = {name for path in FOLDER.glob("*.py") for name in imported(path)} - set(sys.stdlib_module_names)
    lines = (FOLDER / "requirements.txt").read_text(encoding="utf-8").split()
    assert names == {re.split("[<>=~!]", line)[0] for line in lines}


def test_the_readme_shows_pictures_that_are_not_too_large_and_no_vector_graphics() -> None:
    shown = {FOLDER / name for name in re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)}
    assert shown == set((FOLDER / "images").iterdir())
    for path in shown:
        with Image.open(path) as image:
            assert image.format == "PNG"
        assert path.stat().st_size < MOST_BYTES


def test_the_picture_is_what_its_script_draws(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("sampler_bounds", ROOT / "docs" / "sampler_bounds.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.picture().savefig(tmp_path / "drawn.png")
    drawn, kept = (
        np.asarray(Image.open(path).convert("L"), float) for path in (tmp_path / "drawn.png", module.PICTURE)
    )
    # Another release of matplotlib may set a letter a little elsewhere.
    assert drawn.shape == kept.shape, "python docs/sampler_bounds.py draws it anew"
    assert np.abs(drawn - kept).mean() == pytest.approx(0.0, abs=1.0), "python docs/sampler_bounds.py draws it anew"
