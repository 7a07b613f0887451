"""What follows a search: further seeds, the longer training of the recommended detector, and the folder ``best/``."""

import copy
import json
import math
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import onnxruntime
import optuna
import pytest
import yaml
from mmengine.config import Config
from optuna.trial import TrialState
from PIL import Image

from smnas_optuna.errors import UserError
from smnas_optuna.predict import load_detector
from smnas_optuna.reporting.recommendation import recommendation_of
from smnas_optuna.study.budget import seconds_spent
from smnas_optuna.study.optuna_internals import id_of
from smnas_optuna.study.storage import open_storage
from tests.commands import Started, run
from tests.conftest import TINY

BEST = Path("work_dirs/tiny/best")


def write_recipe(folder: Path, **final: Any) -> Path:
    content: dict[str, Any] = copy.deepcopy({key: value for key, value in TINY.items() if key != "modular"})
    content["structural"]["trials"] = 2
    content["final"] = {"epochs": 2, "repeats": 0, **final}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def search(folder: Path, *options: str) -> CompletedProcess[str]:
    """Run a search with more time than it needs, unless the options give it another budget."""
    return run("run_study", "tiny.yaml", "--n-trials", "2", "--budget", "1h", *options, folder=folder)


def load(folder: Path, path: str) -> optuna.Study:
    return optuna.load_study(study_name=f"tiny/{path}", storage=f"sqlite:///{folder}/smnas.db")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a search that has saved its detector, and what it has printed."""
    folder = tmp_path_factory.mktemp("finished")
    write_recipe(folder, repeats=1)
    ended = search(folder)
    assert ended.returncode == 0, ended.stderr
    return folder, ended.stdout


@pytest.mark.takes_minutes
def test_the_recommended_detector_is_trained_longer_from_the_weights_of_its_trial(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    found = recommendation_of(load(folder, "structural"))
    assert any("; after longer training its mAP is 0" in sentence for sentence in found.sentences)
    (name,) = [name for name in optuna.get_all_study_names(f"sqlite:///{folder}/smnas.db") if "/final/T" in name]
    assert name == f"tiny/final/T{found.recommended}"
    (trial,) = load(folder, name.removeprefix("tiny/")).trials
    assert trial.state == TrialState.COMPLETE
    assert trial.user_attrs["weights"] == f"trial {found.recommended} of tiny/structural"
    # The rate from which a cosine of three epochs goes on after the first.
    config = Config.fromfile(folder / f"work_dirs/tiny/final/T{found.recommended}/trial_00000/config.py")
    assert config.optim_wrapper.optimizer.lr == pytest.approx(0.02 * (1 + math.cos(math.pi / 3)) / 2)
    assert config.train_cfg.max_epochs == 2
    *_, last = printed.splitlines()
    assert last.startswith(f"{folder / BEST}: trial {found.recommended}, mAP ")
    said = ["what tiny/structural recommends:", *found.sentences]
    assert printed.splitlines()[-1 - len(said) : -1] == said
    report = (folder / "work_dirs/tiny/tiny-structural.html").read_text(encoding="utf-8")
    assert found.sentences[0] in report


@pytest.mark.takes_minutes
def test_what_is_recommended_is_trained_with_another_seed(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    structural, repeated = load(folder, "structural"), load(folder, "final/seed1")
    picks = recommendation_of(structural).picks
    assert [trial.user_attrs["architecture"] for trial in repeated.trials] == [
        structural.trials[pick].user_attrs["architecture"] for pick in picks
    ]
    first, again = structural.trials[picks[0]], repeated.trials[0]
    config = Config.fromfile(folder / "work_dirs/tiny/final/seed1/trial_00000/config.py")
    assert config.randomness.seed == 1
    assert (first.user_attrs["weights"], again.user_attrs["weights"]) == ("scratch", "scratch")
    assert "With other seeds, trial " in printed


@pytest.mark.takes_minutes
def test_the_folder_has_what_is_needed_to_deploy(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = finished
    best = folder / BEST
    names = sorted(path.name for path in best.iterdir())
    assert names == ["README.md", "config.py", "detector.onnx", "pictures", "trial.json", "weights.pth"]
    assert len(list((best / "pictures").glob("*.jpg"))) == 4
    card = (best / "README.md").read_text(encoding="utf-8")
    number = recommendation_of(load(folder, "structural")).recommended
    assert f"found as tiny/structural trial {number}." in card
    for line in ("| 0 | ", "| 1 | ", "| mAP | ", "- mmdet: Apache", "4 validation images", "![](pictures/01.jpg)"):
        assert line in card
    config = Config.fromfile(best / "config.py")
    assert (config.load_from, config.resume) == (None, False)
    assert "init_cfg" not in config.model
    assert "init_cfg" not in config.model.backbone
    session = onnxruntime.InferenceSession(best / "detector.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["0", "1"]
    # The three lines of the card, on a photograph of another size.
    picture = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 140, 3), dtype=np.uint8)).save(picture)
    use = card.partition("```python\n")[2].partition("```")[0]
    printed: list[Any] = []
    exec(
        use.replace('"best"', repr(str(best))).replace('"photo.jpg"', repr(str(picture))),
        {"print": printed.append},
    )
    assert isinstance(printed[0], list)


@pytest.mark.takes_minutes
def test_predictions_are_drawn_and_printed_as_json(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = finished
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    pixels = np.random.default_rng(1).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    # The second one is stored lying down, as cameras do.
    Image.fromarray(pixels).save(photos / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(photos / "a.jpg", exif=exif)
    Image.fromarray(pixels).save(photos / "more" / "b.jpg")
    (photos / "broken.jpg").write_text("no image", encoding="utf-8")
    (photos / "notes.txt").write_text("no image", encoding="utf-8")
    ended = run("predict", folder / BEST, photos, "--threshold", "0", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert f"not used: {photos}/broken.jpg: cannot be read as an image\n" in ended.stderr
    assert ended.stderr.endswith(f"3 of 4 images are in {tmp_path}/predictions, with boxes\n")
    output = tmp_path / "predictions"
    pictures = {str(path.relative_to(output)): Image.open(path).size for path in output.rglob("*.jpg")}
    assert pictures == {"a.png.jpg": (480, 360), "a.jpg.jpg": (360, 480), "more/b.jpg": (480, 360)}
    records = json.loads(ended.stdout)
    assert [Path(record["image"]).name for record in records] == ["a.jpg", "a.png", "b.jpg"]
    detector = load_detector(folder / BEST, "cpu")
    assert detector.classes == ("0", "1")
    for record in records:
        expected = detector(record["image"], 0.0)
        assert [found["class"] for found in record["detections"]] == [box.name for box in expected]
        assert [found["box"] for found in record["detections"]] == [
            pytest.approx(box.corners, abs=0.06) for box in expected
        ]
        scores = [found["score"] for found in record["detections"]]
        assert scores == sorted(scores, reverse=True)
    assert detector(pixels, 1.0) == []


@pytest.mark.takes_minutes
def test_the_same_command_again_changes_nothing(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    before = (folder / BEST / "weights.pth").stat().st_mtime_ns
    ended = search(folder)
    assert ended.returncode == 0, ended.stderr
    assert "already, mAP " in ended.stdout.splitlines()[-1]
    assert "epoch" not in ended.stdout
    assert (folder / BEST / "weights.pth").stat().st_mtime_ns == before
    status = search(folder, "--status")
    assert "tiny/final/seed1: " in status.stdout


@pytest.mark.takes_minutes
def test_a_final_training_that_was_killed_is_resumed(tmp_path: Path) -> None:
    write_recipe(tmp_path, epochs=4)
    with Started("run_study", "tiny.yaml", "--n-trials", "2", "--budget", "1h", folder=tmp_path) as started:
        for line in started.stdout:
            if "epoch 2/4" in line:
                started.kill()
                break
    ended = search(tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "resumes after epoch" in ended.stdout
    assert "epoch 4/4" in ended.stdout
    assert (tmp_path / BEST / "README.md").is_file()
    # What it has resumed from is gone.
    assert Config.fromfile(tmp_path / BEST / "config.py").load_from is None


@pytest.mark.takes_minutes
def test_weights_that_longer_training_makes_worse_are_not_taken(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    without = search(tmp_path, "--no-final")
    assert without.returncode == 0, without.stderr
    assert not (tmp_path / BEST).exists()
    study = load(tmp_path, "structural")
    number = recommendation_of(study).recommended
    _raise_accuracy(tmp_path, number)
    own = tmp_path / BEST
    own.mkdir()
    (own / "notes.txt").write_text("mine", encoding="utf-8")
    ended = search(tmp_path)
    assert ended.returncode == 0, ended.stderr
    card = (tmp_path / BEST / "README.md").read_text(encoding="utf-8")
    assert "where the search had 1.000, so these are the search's weights." in card
    record = json.loads((tmp_path / BEST / "trial.json").read_text(encoding="utf-8"))
    assert (record["study_name"], record["trial"]) == ("tiny/structural", number)
    # A folder of the user's with that name is kept.
    assert (tmp_path / "work_dirs/tiny/best.former-1/notes.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.takes_minutes
def test_without_time_for_a_longer_training_the_weights_of_the_search_are_saved(tmp_path: Path) -> None:
    write_recipe(tmp_path, repeats=2)
    assert search(tmp_path, "--no-final").returncode == 0
    ended = search(tmp_path, "--budget", "1s", "--quiet")
    assert ended.returncode == 0, ended.stderr
    assert re.search("not trained with other seeds, which would take about .+: 0s are left for it\n", ended.stdout)
    assert "not trained longer than in the search: 0s are left\n" in ended.stdout
    assert "epoch" not in ended.stdout
    card = (tmp_path / BEST / "README.md").read_text(encoding="utf-8")
    assert "Longer training" not in card


@pytest.mark.takes_minutes
def test_a_search_that_recommends_another_detector_replaces_the_folder(tmp_path: Path) -> None:
    write_recipe(tmp_path, epochs=1)
    first = search(tmp_path, "--set", "constraints.max_params=1000000")
    assert first.returncode == 0, first.stderr
    number = recommendation_of(load(tmp_path, "structural")).recommended
    for other in {0, 1} - {number}:
        _raise_accuracy(tmp_path, other)
    ended = search(tmp_path, "--set", "constraints.max_params=1000000")
    assert ended.returncode == 0, ended.stderr
    record = json.loads((tmp_path / BEST / "trial.json").read_text(encoding="utf-8"))
    assert record["study_name"] in ("tiny/structural", f"tiny/final/T{1 - number}")
    assert (tmp_path / "work_dirs/tiny/best.former-1/README.md").is_file()


@pytest.mark.takes_minutes
def test_a_search_that_was_killed_keeps_to_its_budget_also_in_what_follows(tmp_path: Path) -> None:
    write_recipe(tmp_path, epochs=60, repeats=1)
    arguments = (
        "run_study",
        "tiny.yaml",
        "--budget",
        "100s",
        "--n-trials",
        "2",
        "--set",
        "structural.training.epochs=4",
    )
    for moment in ("seed1 trial 0: epoch 2/4", "T"):
        with Started(*arguments, folder=tmp_path) as started:
            if any(moment in line and "epoch 2" in line for line in started.stdout):
                started.kill()
    ended = run(*arguments, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / BEST / "README.md").is_file()
    storage = open_storage(f"sqlite:///{tmp_path}/smnas.db", create=False)
    names = optuna.get_all_study_names(storage)
    assert {"tiny/structural", "tiny/final/seed1"} < set(names)
    assert seconds_spent(storage, names) <= 100 + 15


@pytest.mark.takes_minutes
def test_a_dry_run_says_what_follows(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    shown = search(tmp_path, "--dry-run")
    assert shown.returncode == 0
    assert shown.stdout.endswith("then the recommended detector is trained for 2 epochs at most, and saved as best/\n")
    assert "best/" not in search(tmp_path, "--dry-run", "--no-final").stdout


@pytest.mark.parametrize(
    ("detector", "image", "message"),
    [
        ("empty", "photo.jpg", "empty: has no config.py; expected a folder such as the best/ of a search"),
        ("absent", "photo.jpg", "absent: has no config.py; expected a folder such as the best/ of a search"),
        ("empty", "absent.jpg", "IMAGE_OR_FOLDER absent.jpg: no such file or folder"),
        ("empty", "empty", "IMAGE_OR_FOLDER empty: has no images; expected .bmp, .jpeg, "),
        ("empty", "photo.jpg --output .", "--output "),
    ],
)
def test_what_cannot_be_predicted_is_one_line(tmp_path: Path, detector: str, image: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    ended = run("predict", detector, *image.split(), folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {message}")
    assert Image.open(tmp_path / "photo.jpg").size == (8, 8)
    assert ended.stderr.count("\n") == 1


@pytest.mark.takes_minutes
def test_an_image_that_cannot_be_read_is_one_line(finished: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("no image", encoding="utf-8")
    ended = run("predict", finished[0] / BEST, "photo.jpg", folder=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.endswith("error: photo.jpg: cannot be read as an image\n")
    with pytest.raises(UserError, match=r"absent\.jpg: cannot be read"):
        load_detector(finished[0] / BEST)(tmp_path / "absent.jpg")
    with pytest.raises(UserError, match="device 'gpu': cannot be used: "):
        load_detector(finished[0] / BEST, "gpu")


def _raise_accuracy(folder: Path, number: int) -> None:
    """Let a trial look as if it had found everything."""
    study = load(folder, "structural")
    with closing(sqlite3.connect(folder / "smnas.db")) as database, database:
        identity = id_of(study.trials[number])
        database.execute("UPDATE trial_values SET value = 1.0 WHERE trial_id = ? AND objective = 0", (identity,))
        database.execute(
            "UPDATE trial_user_attributes SET value_json = '1.0' WHERE trial_id = ? AND key = 'map'", (identity,)
        )
