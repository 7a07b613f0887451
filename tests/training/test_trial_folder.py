import json
from dataclasses import replace
from pathlib import Path

import pytest

from smnas_optuna.errors import UserError
from smnas_optuna.training.job import TrialIdentity
from smnas_optuna.training.trial_folder import check_record, find_folder, folder_of, prepare_folder, record_of

ARCHITECTURE = "64x48 ResNet18(w=8) FPN(P2-P4,c=16) RPN 2FC"
TRIAL = TrialIdentity("a1", "tiny/structural", 12, 3)


def test_a_folder_records_its_trial(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "tiny" / "structural", 12)
    assert folder.name == "trial_00012"
    assert prepare_folder(folder, TRIAL, ARCHITECTURE) is None
    assert json.loads((folder / "trial.json").read_text(encoding="utf-8")) == {
        "study": "a1",
        "study_name": "tiny/structural",
        "trial": 12,
        "first_trial": 3,
        "architecture": ARCHITECTURE,
    }
    assert find_folder(folder.parent, TRIAL, ARCHITECTURE) == folder


def test_an_existing_folder_is_moved_aside_each_time(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 12)
    for number, study in enumerate(("a1", "b2", "c3")):
        moved = prepare_folder(folder, replace(TRIAL, study=study), ARCHITECTURE)
        assert moved == (tmp_path / f"trial_00012.former-{number}" if number else None)
        assert [file.name for file in folder.iterdir()] == ["trial.json"]
        (folder / "logs").mkdir()
        (folder / "logs" / "losses").write_text(study, encoding="utf-8")
    assert (tmp_path / "trial_00012.former-1" / "logs" / "losses").read_text(encoding="utf-8") == "a1"
    assert (tmp_path / "trial_00012.former-2" / "logs" / "losses").read_text(encoding="utf-8") == "b2"
    # Each study finds its own folder.
    assert find_folder(tmp_path, replace(TRIAL, study="b2"), ARCHITECTURE) == tmp_path / "trial_00012.former-2"
    assert find_folder(tmp_path, replace(TRIAL, study="c3"), ARCHITECTURE) == folder


def test_an_existing_file_is_moved_aside_and_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "trial_00012").touch()
    assert prepare_folder(tmp_path / "trial_00012", TRIAL, ARCHITECTURE) == tmp_path / "trial_00012.former-1"
    (tmp_path / "trial_00013").mkdir()
    assert prepare_folder(tmp_path / "trial_00013", TRIAL, ARCHITECTURE) is None


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        prepare_folder(tmp_path / "file" / "trial_00012", TRIAL, ARCHITECTURE)


@pytest.mark.parametrize(
    ("found", "architecture", "message"),
    [
        (
            replace(TRIAL, study="b2"),
            ARCHITECTURE,
            "belongs to another study: found 'tiny/structural' with id b2, expected 'tiny/structural' with id a1",
        ),
        (
            replace(TRIAL, study=""),
            ARCHITECTURE,
            "belongs to another study: found 'tiny/structural' without id, expected 'tiny/structural' with id a1",
        ),
        (replace(TRIAL, trial=3), ARCHITECTURE, "belongs to another trial: found 3, expected 12"),
        (TRIAL, "64x48 ResNet18(w=8) RetinaNet", "belongs to another detector: found 64x48 ResNet18(w=8) RetinaNet, "),
    ],
)
def test_a_folder_of_another_trial_is_refused_in_one_line(
    tmp_path: Path, found: TrialIdentity, architecture: str, message: str
) -> None:
    folder = folder_of(tmp_path, 12)
    prepare_folder(folder, found, architecture)
    with pytest.raises(UserError) as refused:
        find_folder(tmp_path, TRIAL, ARCHITECTURE)
    assert str(refused.value).startswith(f"{folder}: {message}")
    assert "\n" not in str(refused.value)


def test_a_study_without_an_id_is_identified_by_its_name(tmp_path: Path) -> None:
    mine = replace(TRIAL, study="")
    check_record("here", record_of(replace(TRIAL, study="b2"), ARCHITECTURE), mine, ARCHITECTURE)
    with pytest.raises(
        UserError, match=r"^here: belongs to another study: found 'coco/structural' with id b2, expected "
    ):
        check_record(
            "here", record_of(replace(TRIAL, study="b2", study_name="coco/structural"), ""), mine, ARCHITECTURE
        )


@pytest.mark.parametrize("text", ["", "[]", '{"study": "a1"}', "\xff"])
def test_a_damaged_record_is_a_user_error(tmp_path: Path, text: str) -> None:
    folder = folder_of(tmp_path, 12)
    folder.mkdir()
    (folder / "trial.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"trial_00012/trial\.json: "):
        find_folder(tmp_path, TRIAL, ARCHITECTURE)


def test_folders_of_former_versions_are_found_by_the_number_of_the_first_attempt(tmp_path: Path) -> None:
    own, first = folder_of(tmp_path, 12), folder_of(tmp_path, 3)
    assert find_folder(tmp_path, TRIAL, ARCHITECTURE) == own  # where it should be
    first.mkdir()
    assert find_folder(tmp_path, TRIAL, ARCHITECTURE) == first
    # Current versions do not use the first attempt's folder for a retry.
    prepare_folder(first, replace(TRIAL, trial=3), ARCHITECTURE)
    assert find_folder(tmp_path, TRIAL, ARCHITECTURE) == own
    prepare_folder(own, TRIAL, ARCHITECTURE)
    assert find_folder(tmp_path, TRIAL, ARCHITECTURE) == own


def test_weights_of_former_versions_are_checked_by_their_architecture() -> None:
    check_record("weights.pth", {"architecture": ARCHITECTURE}, TRIAL, ARCHITECTURE)
    check_record("final.pth", {"epoch": 24}, TRIAL, ARCHITECTURE)
    with pytest.raises(UserError, match=r"^weights\.pth: belongs to another detector: found ResNet, expected 64x48 "):
        check_record("weights.pth", {"architecture": "ResNet"}, TRIAL, ARCHITECTURE)
