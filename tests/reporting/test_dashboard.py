"""What optuna-dashboard shows of a search, tested in a browser."""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna_dashboard import get_note

from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.reporting.dashboard import PARETO_FIGURE, DashboardUpdater, describe_study, describe_trial, trial_note
from smnas_optuna.search.structural import StructuralSearch
from smnas_optuna.study.storage import open_storage
from tests.browser import open_page
from tests.commands import free_port

_START_SECONDS = 30.0


@pytest.fixture(scope="module")
def study(searched: Path) -> optuna.Study:
    return optuna.load_study(study_name="tiny/structural", storage=f"sqlite:///{searched}/smnas.db")


@pytest.fixture(scope="module")
def dashboard(searched: Path) -> Iterator[str]:
    """The address of an optuna-dashboard for the search, started as the README says."""
    port = free_port()
    program = Path(sys.executable).with_name("optuna-dashboard")
    arguments = ["sqlite:///smnas.db", "--artifact-dir", "work_dirs/tiny/artifacts", "--host", "127.0.0.1"]
    with subprocess.Popen(
        [program, *arguments, "--port", str(port)], cwd=searched, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        address = f"http://127.0.0.1:{port}/dashboard"
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                urllib.request.urlopen(address, timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.1)
        yield address
        process.terminate()


def test_a_study_has_a_note_with_its_front_and_a_figure(study: optuna.Study) -> None:
    note = get_note(study)
    assert "; 2 of 4 trials finished so far." in note
    assert "| trial | mAP | ms | architecture |" in note
    for trial in study.best_trials:
        assert f"| {trial.number} |" in note
        assert trial.user_attrs["architecture"] in note
    attributes = study._storage.get_study_system_attrs(study._study_id)
    assert any(PARETO_FIGURE in key for key in attributes)


def test_describing_a_study_again_adds_no_attributes(study: optuna.Study, searched: Path) -> None:
    before = set(study._storage.get_study_system_attrs(study._study_id))
    search = StructuralSearch(load_recipe(str(searched / "tiny.yaml")))
    describe_study(open_storage(f"sqlite:///{searched}/smnas.db"), search)
    assert set(study._storage.get_study_system_attrs(study._study_id)) == before


def test_the_dashboard_is_updated_at_most_once_a_minute(tmp_path: Path, tiny_recipe: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/smnas.db")
    search = StructuralSearch(load_recipe(str(tiny_recipe)))
    dashboard = DashboardUpdater(storage, [search])
    dashboard.refresh(search.path)  # there is no study yet
    study = optuna.create_study(study_name=search.study_name, storage=storage, directions=["maximize", "minimize"])
    dashboard.refresh(search.path)
    assert get_note(study) == ""
    dashboard.refresh_all()
    assert "; 0 of 4 trials finished so far." in get_note(study)


def test_a_trial_has_its_config_its_log_and_a_picture(study: optuna.Study, searched: Path) -> None:
    for trial in study.trials:
        metas = optuna.artifacts.get_all_artifact_meta(trial, storage=study._storage)
        assert {meta.filename for meta in metas} == {"config.py", "output.log", "detections.jpg"}
        store = optuna.artifacts.FileSystemArtifactStore(searched / "work_dirs/tiny/artifacts")
        for meta in metas:
            with store.open_reader(meta.artifact_id) as reader:
                own = searched / f"work_dirs/tiny/structural/trial_{trial.number:05d}" / meta.filename
                assert reader.read() == own.read_bytes()


def test_artifacts_that_cannot_be_copied_are_noted(tmp_path: Path) -> None:
    study = optuna.create_study()
    trial = study.ask()
    (tmp_path / "config.py").touch()
    (tmp_path / "occupied").touch()
    describe_trial(trial, [2.0, 1.0], tmp_path, tmp_path / "occupied")
    assert "Its files could not be copied to the artifact store: " in get_note(trial)


def test_a_trial_with_few_attributes_has_a_note() -> None:
    assert trial_note({"architecture": "A", "map": 0.25}, []) == "**A**\n\nmAP 0.250"


def test_a_trials_note_has_everything_that_is_known_of_it() -> None:
    assert trial_note({"architecture": "A", "reason": "out of memory"}, []) == "**A**\n\nfailed: out of memory"
    attributes = {
        **{"map": 0.25, "map_50": 0.5, "map_75": 0.2, "map_small": -1.0, "map_medium": 0.2, "map_large": 0.3},
        **{"latency_ms": 20.0, "latency_spread_ms": 0.5, "flops": 3e9, "params": 2e6, "train_seconds": 90.0},
    }
    assert trial_note({"architecture": "A", **attributes}, [2.0, 0.5]).split("\n\n") == [
        "**A**",
        "mAP 0.250, AP50 0.500, AP75 0.200 (small –, medium 0.200, large 0.300)",  # noqa: RUF001
        "inference time 20.0 ± 0.5 ms, FLOPs 3.00 G, params 2.00 M",
        "loss by epoch `█▁` 2 to 0.5, trained for 1.5 min",
    ]


def test_the_dashboard_shows_a_trial_its_note_and_its_picture(dashboard: str, study: optuna.Study) -> None:
    architecture = study.trials[0].user_attrs["architecture"]
    with open_page() as page:
        page.goto(dashboard)
        page.get_by_text("tiny/structural").first.click()
        # The axis title of this package's figure; the dashboard's plots have "map".
        page.wait_for_selector(".js-plotly-plot >> text=mAP (COCO metric, val)")
        page.goto(f"{dashboard}/studies/{study._study_id}/trials")
        page.get_by_text("Trial 0", exact=True).first.click()
        page.wait_for_selector(f"strong:has-text('{architecture}')")
        picture = page.wait_for_selector("img[src*='/artifacts/']")
        assert picture is not None
        page.wait_for_function("image => image.complete && image.naturalWidth > 100", arg=picture)
        assert page.get_by_text("config.py").count() > 0
