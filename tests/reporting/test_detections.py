import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import yaml
from numpy.typing import NDArray
from optuna.trial import TrialState, create_trial
from PIL import Image

from smnas_optuna.data.digits import make_digits
from smnas_optuna.errors import UserError
from smnas_optuna.reporting.detections import draw_detections
from tests.commands import run
from tests.conftest import TINY
from tests.reporting.synthetic_study import finished, make_study

NAME = "tiny/structural"
SEED = "64x48 ResNet18(w=8) FPN(P2-P4,c=16) RPN 2FC"
# Sizes in the picture, in pixels: a row consists of a caption, an image of 480x360 and a gap.
ROW, CAPTION, COLUMN, MARGIN = 18 + 360 + 12, 18, 480 + 12, 16


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A folder with a search of two trained detectors, a pruned trial and a waiting trial."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
    ended = run("run_study", "tiny.yaml", "--n-trials", 2, "--seed", 1, folder=folder)
    assert ended.returncode == 0, ended.stderr
    study = load(folder)
    study.add_trial(create_trial(state=TrialState.PRUNED))
    study.enqueue_trial({})
    for config in folder.glob("work_dirs/tiny/structural/*/config.py"):
        # After one epoch no detection reaches the default threshold.
        text = config.read_text(encoding="utf-8")
        assert "score_thr=0.05" in text
        config.write_text(text.replace("score_thr=0.05", "score_thr=0.0"), encoding="utf-8")
    return folder


@pytest.fixture
def copy(searched: Path, tmp_path: Path) -> Path:
    """A copy of the search that a test may damage."""
    shutil.copytree(searched, tmp_path / "copy")
    return tmp_path / "copy"


def load(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=NAME, storage=f"sqlite:///{folder}/smnas.db")


def output_of(folder: Path) -> Path:
    return folder / "work_dirs" / "tiny"


def pixels_of(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def cell(pixels: NDArray[np.uint8], row: int, column: int, *, rows: int) -> NDArray[np.uint8]:
    """Return the pixels of an image in a picture."""
    top, left = len(pixels) - (rows - row) * ROW + CAPTION, MARGIN + column * COLUMN
    return pixels[top : top + 360, left : left + 480]


def test_the_command_draws_a_column_for_each_trial_and_prints_the_pictures_path(searched: Path) -> None:
    ended = run("detections", "--study", NAME, "--trials", "0,1", "--images", "2", folder=searched)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "tiny-structural-detections.png\n", "")
    pixels = pixels_of(searched / "tiny-structural-detections.png")
    assert pixels.shape[1] == MARGIN + 3 * COLUMN - 12 + MARGIN
    assert 2 * ROW + MARGIN < len(pixels) < 2 * ROW + MARGIN + 120
    headings = [pixels[: -2 * ROW, MARGIN + column * COLUMN :][:, :480] for column in range(3)]
    assert all((heading < 100).any() for heading in headings)
    assert (headings[1] != headings[2]).any()


def test_trials_and_images_are_drawn_in_the_requested_order(searched: Path) -> None:
    def drawn(trials: Sequence[int], images: Sequence[str], threshold: float = 0.0) -> NDArray[np.uint8]:
        path = searched / "new folder" / "order.png"
        assert draw_detections(load(searched), trials, output_of(searched), images, threshold, path=path) == path
        return pixels_of(path)

    one, other = drawn([0, 1], ["000001.png", "000003.png"]), drawn([1, 0], ["000003.png", "000001.png"])
    for row in range(2):
        for column in range(3):
            swapped = cell(other, 1 - row, (0, 2, 1)[column], rows=2)
            assert (cell(one, row, column, rows=2) == swapped).all(), (row, column)
        truth, first, second = (cell(one, row, column, rows=2) for column in range(3))
        assert (truth != first).any()
        assert (first != second).any()
    # With a threshold that no detection reaches, only the image is drawn.
    bare = cell(drawn([0], ["000001.png"], threshold=1.0), 0, 1, rows=1)
    digits = TINY["dataset"]
    scenes = make_digits(2, digits["train_images"], digits["val_images"], width=64, height=48)
    scene = Image.open(scenes / "val" / "000001.png").convert("RGB")
    assert (bare == np.asarray(scene.resize((480, 360), Image.Resampling.BICUBIC))).all()


def test_a_jpeg_can_be_written(searched: Path, tmp_path: Path) -> None:
    path = draw_detections(load(searched), [0], output_of(searched), 1, path=tmp_path / "one.JPG")
    with Image.open(path) as picture:
        assert picture.format == "JPEG"


def _remove_records(folder: Path) -> None:
    """Remove the records of the trial, which former versions did not write, from a trial's folder."""
    (folder / "trial.json").unlink()
    content = torch.load(folder / "weights.pth")
    for name in ("study", "study_name", "trial", "first_trial"):
        del content["meta"][name]
    torch.save(content, folder / "weights.pth")


def test_a_retried_trial_of_a_former_version_is_found_in_the_first_attempts_folder(copy: Path) -> None:
    study = load(copy)
    again = create_trial(
        values=[0.5, 5.0],
        user_attrs={"architecture": SEED, "map": 0.5, "latency_ms": 5.0},
        system_attrs={"failed_trial": 2, "retry_history": [2]},
    )
    study.add_trial(again)
    folder = output_of(copy) / "structural"
    _remove_records((folder / "trial_00000").rename(folder / "trial_00002"))
    number = study.trials[-1].number
    assert draw_detections(study, [number], output_of(copy), 1, path=copy / "retried.png").exists()


def test_a_folder_that_a_later_search_moved_aside_is_found(copy: Path) -> None:
    folder = output_of(copy) / "structural"
    (folder / "trial_00000").rename(folder / "trial_00000.former-1")
    shutil.copytree(folder / "trial_00001", folder / "trial_00000")
    assert draw_detections(load(copy), [0], output_of(copy), 1, path=copy / "former.png").exists()


def test_studies_of_stage_two_have_folders_of_their_own(copy: Path) -> None:
    trial = finished(0.5, 5.0, map=0.5, latency_ms=5.0, architecture=SEED)
    study = make_study(copy / "work_dirs", [trial], name="tiny/modular/C0")
    (output_of(copy) / "structural").rename(output_of(copy) / "C0")
    (output_of(copy) / "modular").mkdir()
    (output_of(copy) / "C0").rename(output_of(copy) / "modular" / "C0")
    _remove_records(output_of(copy) / "modular" / "C0" / "trial_00000")
    assert draw_detections(study, [0], output_of(copy), 1, path=copy / "two.png").exists()


def _remove_weights(folder: Path) -> None:
    (output_of(folder) / "structural" / "trial_00001" / "weights.pth").unlink()


def _use_another_trials_folder(folder: Path) -> None:
    structural = output_of(folder) / "structural"
    shutil.rmtree(structural / "trial_00001")
    shutil.copytree(structural / "trial_00000", structural / "trial_00001")


def _use_another_studys_folder(folder: Path) -> None:
    load(folder).set_user_attr("id", "a1")
    record = output_of(folder) / "structural" / "trial_00001" / "trial.json"
    content = json.loads(record.read_text(encoding="utf-8"))
    record.write_text(json.dumps({**content, "study": "b2"}), encoding="utf-8")


def _use_another_trials_weights(folder: Path) -> None:
    structural = output_of(folder) / "structural"
    shutil.copy(structural / "trial_00000" / "weights.pth", structural / "trial_00001")


def _use_an_earlier_versions_other_detector(folder: Path) -> None:
    _use_another_trials_folder(folder)
    _remove_records(output_of(folder) / "structural" / "trial_00001")


def _cut_the_weights(folder: Path) -> None:
    (output_of(folder) / "structural" / "trial_00001" / "weights.pth").write_bytes(b"half a file")


def _lose_the_data(folder: Path) -> None:
    config = output_of(folder) / "structural" / "trial_00001" / "config.py"
    config.write_text(config.read_text(encoding="utf-8").replace("val.json", "gone.json"), encoding="utf-8")


def _lose_the_images(folder: Path) -> None:
    config = output_of(folder) / "structural" / "trial_00001" / "config.py"
    config.write_text(config.read_text(encoding="utf-8").replace("/val'", "/gone'"), encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "prepare", "expected"),
    [
        pytest.param(
            {"trials": [7]},
            None,
            "--trials 7: no such trial in 'tiny/structural'; expected a finished trial, such as 0, 1",
            id="no such trial",
        ),
        pytest.param(
            {"trials": [-1]},
            None,
            "--trials -1: no such trial in 'tiny/structural'; expected a finished trial, such as 0, 1",
            id="negative trial",
        ),
        pytest.param(
            {"trials": [0, 2]},
            None,
            "--trials 2: this trial of 'tiny/structural' is pruned; expected a finished trial, such as 0, 1",
            id="pruned trial",
        ),
        pytest.param({"trials": [3]}, None, "--trials 3: this trial of 'tiny/structural' is waiting", id="waiting"),
        pytest.param({"trials": []}, None, "--trials: found none; expected numbers of finished", id="no trials"),
        pytest.param(
            {"folder": Path("nowhere")},
            None,
            "--output nowhere: has no structural/trial_00001/config.py; expected the folder that the study was",
            id="no folder",
        ),
        pytest.param({}, _remove_weights, "has no structural/trial_00001/weights.pth; expected", id="no weights"),
        pytest.param(
            {},
            _use_another_trials_folder,
            "structural/trial_00001: belongs to another trial: found 0",
            id="other folder",
        ),
        pytest.param(
            {},
            _use_another_studys_folder,
            "trial_00001: belongs to another study: found 'tiny/structural' with id b2, expected 'tiny/structural'",
            id="another study",
        ),
        pytest.param(
            {},
            _use_another_trials_weights,
            "weights.pth: belongs to another trial: found 0, expected 1",
            id="other weights",
        ),
        pytest.param(
            {},
            _use_an_earlier_versions_other_detector,
            "weights.pth: belongs to another detector: found 64x48 ",
            id="other detector",
        ),
        pytest.param({}, _cut_the_weights, "trial_00001/weights.pth: cannot be loaded: ", id="spoiled weights"),
        pytest.param(
            {"images": 0}, None, "--images: found none; expected file names or a number from 1", id="0 images"
        ),
        pytest.param(
            {"images": ["000002.png", "00003.png"]}, None, "--images 00003.png: no such image in ", id="unknown image"
        ),
        pytest.param(
            {"path": Path("a.gif")}, None, "--save a.gif: expected a file that ends in .png, .jpg", id="format"
        ),
        pytest.param(
            {"path": Path("/proc/a/b.png")}, None, "--save /proc/a/b.png: cannot be written: ", id="no folder"
        ),
        pytest.param({"path": Path("/proc/b.png")}, None, "--save /proc/b.png: cannot be written: ", id="not writable"),
        pytest.param({}, _lose_the_data, "gone.json: no such file; expected the validation split that ", id="no data"),
        pytest.param({}, _lose_the_images, "000001.png: cannot be read: No such file or directory; ", id="no images"),
    ],
)
def test_messages_about_user_errors_say_where_and_what_was_expected(
    copy: Path, arguments: dict[str, Any], prepare: Callable[[Path], None] | None, expected: str
) -> None:
    if prepare:
        prepare(copy)
    given = {"trials": [1], "folder": output_of(copy), "path": copy / "a.png", **arguments}
    with pytest.raises(UserError) as raised:
        draw_detections(load(copy), **given)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (copy / "a.png").exists()


def test_a_study_that_run_study_did_not_make_is_refused_for_drawing(tmp_path: Path) -> None:
    study = make_study(tmp_path, [finished(0.5, 5.0)], name="mine")
    with pytest.raises(UserError, match="--study 'mine': not made by run_study"):
        draw_detections(study, [0], tmp_path, path=tmp_path / "a.png")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(["--trials", "1,x"], "--trials '1,x': expected numbers of finished trials", id="no number"),
        pytest.param(["--trials", "9"], "--trials 9: no such trial", id="no such trial"),
        pytest.param(["--trials", "0", "--images", "1.png"], "did you mean 000001.png?", id="unknown image"),
        pytest.param(["--trials", "0", "--threshold", "2"], "--threshold", id="threshold"),
        pytest.param(["--trials", "0", "--study", "tiny/modular/C0"], "no such study", id="no such study"),
        pytest.param([], "--trials", id="nothing"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_with_exit_code_2(
    searched: Path, arguments: list[str], expected: str
) -> None:
    ended = run("detections", "--study", NAME, "--save", "never.png", *arguments, folder=searched)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert expected in ended.stderr
    assert not (searched / "never.png").exists()
