"""The notebooks themselves are run by nbmake, see pyproject.toml."""

from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_its_outputs_and_without_this_machines_paths(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(bool(cell.outputs) for cell in code) > len(code) / 2
    text = path.read_text(encoding="utf-8")
    assert "Traceback" not in text
    assert "site-packages" not in text
    assert "/tmp/" not in text


def test_the_study_that_the_notebooks_open_is_small() -> None:
    assert (NOTEBOOKS / "demo_study.db").stat().st_size < 2_000_000
