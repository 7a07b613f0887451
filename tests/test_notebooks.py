import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.reporting.synthetic_study import detectors, make_study

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_on_a_study_in_a_database(path: Path, tmp_path: Path) -> None:
    make_study(tmp_path, detectors(), name="digits/structural")
    os.environ["SMNAS_STORAGE"] = f"sqlite:///{tmp_path}/smnas.db"
    try:
        notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    finally:
        del os.environ["SMNAS_STORAGE"]
    drawn = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("application/vnd.plotly.v1+json" in output.get("data", {}) for output in drawn)
