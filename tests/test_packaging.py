import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.commands import command

ROOT = Path(__file__).parent.parent


def test_what_the_demo_leaves_behind_is_ignored_by_git() -> None:
    # Beside an SQLite file lie those of its journal, and the lock of smnas_optuna/claim.py.
    files = ["demo/digits-structural.html", *(f"demo.db{end}" for end in ("", "-shm", "-wal", "-journal", ".lock"))]
    ended = subprocess.run(["git", "check-ignore", *files], cwd=ROOT, capture_output=True, text=True, check=False)
    if "not a git repository" in ended.stderr:
        pytest.skip("not a checkout")
    assert ended.stdout.split() == files


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built by way of its sdist from a copy of the sources."""
    folder = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "demo", "work_dirs", "__pycache__", "*.db")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=ignored)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(folder / "source")]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (folder / "dist").glob("*.whl")
    return path


def test_the_wheel_has_the_samplers_the_recipes_and_what_the_report_needs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"smnas_optuna/studies/{path.name}" for path in (ROOT / "studies").glob("*.yaml")}
    assert recipes
    page = {"smnas_optuna/reporting/page.html", "smnas_optuna/reporting/page.css"}
    assert recipes | page | {"smnas_optuna/py.typed", "smnas_optuna/samplers/__init__.py"} <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def test_what_a_registry_shows_of_the_files_can_be_rendered(wheel: Path) -> None:
    files = sorted(map(str, wheel.parent.iterdir()))
    assert len(files) == 2
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_an_installed_package_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    ended = subprocess.run(
        command("run_study", "digits", "--dry-run"),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("study digits/structural: ")
    where = "import smnas_optuna, sys; sys.stdout.write(smnas_optuna.__path__[0])"
    found = subprocess.run(
        [sys.executable, "-c", where],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout) == site / "smnas_optuna"
