"""Folders of trials. Each records the trial that it belongs to, and is not used for any other trial."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.training.job import TrialIdentity

_RECORD = "trial.json"


def folder_of(base: Path, number: int) -> Path:
    """Return the path of a trial's folder.

    Args:
        base: Folder of the study's trials, such as ``work_dirs/coco/structural``.
        number: Number of the trial.
    """
    return base / f"trial_{number:05d}"


def prepare_folder(folder: Path, identity: TrialIdentity, architecture: Architecture | str) -> Path | None:
    """Create the folder of a trial that is about to be evaluated, and record the trial in it.

    Call this once per trial. A folder that exists already is then from another study, such as one whose database has
    been deleted, and is moved aside.

    Args:
        folder: Folder of the trial, see :func:`folder_of`.
        identity: The trial.
        architecture: The trial's architecture.

    Returns:
        Path that an existing folder has been moved to, such as ``trial_00012.former-1``; None if there was none.

    Raises:
        OSError: The folder cannot be created, moved or written.
    """
    former = None if _is_vacant(folder) else move_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, identity, architecture)
    return former


def write_record(folder: Path, identity: TrialIdentity, architecture: Architecture | str) -> None:
    """Record in a folder which trial it belongs to; raises OSError if it cannot be written."""
    (folder / _RECORD).write_text(json.dumps(record_of(identity, architecture), indent=2) + "\n", encoding="utf-8")


def belongs_to(folder: Path, identity: TrialIdentity, architecture: Architecture | str) -> bool:
    """Return whether a folder has the record of a trial."""
    return (folder / _RECORD).is_file() and _read_record(folder) == record_of(identity, architecture)


def find_folder(base: Path, identity: TrialIdentity, architecture: str) -> Path:
    """Return the folder that a trial was evaluated in; if it does not exist, the path where it should be.

    Former versions did not record the trial in its folder, and a retry of an interrupted trial used the folder of the
    first attempt. Such a folder is returned unchecked; check the weights in it with :func:`check_record`.

    Args:
        base: Folder of the study's trials, such as ``work_dirs/coco/structural``.
        identity: The trial.
        architecture: The trial's architecture.

    Raises:
        UserError: The folder belongs to another study, trial or architecture.
    """
    expected = folder_of(base, identity.trial)
    if not (expected / _RECORD).exists():
        first = folder_of(base, identity.first_trial)
        return first if first.exists() and not (first / _RECORD).exists() else expected
    # A later run with another database may have moved it aside.
    former = (folder for folder in sorted(base.glob(f"{expected.name}.former-*")) if (folder / _RECORD).exists())
    mismatches = []
    for folder in (expected, *former):
        try:
            check_record(str(folder), _read_record(folder), identity, architecture)
        except UserError as mismatch:
            mismatches.append(mismatch)
        else:
            return folder
    raise mismatches[0]


def record_of(identity: TrialIdentity, architecture: Architecture | str) -> dict[str, Any]:
    """Return the record of a trial that is saved in its folder and with its weights."""
    return {**asdict(identity), "architecture": str(architecture)}


def check_record(place: str, record: Mapping[str, Any], identity: TrialIdentity | None, architecture: str) -> None:
    """Check that a folder or weights belong to a trial.

    Args:
        place: How error messages name the folder or file.
        record: Record in the folder or file, see :func:`record_of`. Absent keys are not checked, since former versions
            recorded less.
        identity: The trial; None to check the architecture only.
        architecture: The trial's architecture.

    Raises:
        UserError: The folder or weights belong to another study, trial or architecture.
    """
    if identity is not None and "study" in record:
        # Studies of former versions have no id.
        key = "study" if identity.study else "study_name"
        if record[key] != getattr(identity, key):
            found = _study_text(record["study_name"], record["study"])
            expected = _study_text(identity.study_name, identity.study)
            raise UserError(f"{place}: belongs to another study: found {found}, expected {expected}")
        if record["trial"] != identity.trial:
            raise UserError(f"{place}: belongs to another trial: found {record['trial']}, expected {identity.trial}")
    if record.get("architecture", architecture) != architecture:
        message = f"belongs to another detector: found {record['architecture']}, expected {architecture}"
        raise UserError(f"{place}: {message}")


def _study_text(name: str, identifier: str) -> str:
    return f"{name!r} with id {identifier}" if identifier else f"{name!r} without id"


def _is_vacant(folder: Path) -> bool:
    try:
        return not any(folder.iterdir())
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False


def move_aside(folder: Path) -> Path:
    """Rename a folder to the first free name such as ``trial_00012.former-1``, and return that; raises OSError."""
    for number in itertools.count(1):
        free = folder.with_name(f"{folder.name}.former-{number}")
        if not free.exists():
            return folder.rename(free)
    raise AssertionError


def _read_record(folder: Path) -> dict[str, Any]:
    file = folder / _RECORD
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    names = [*(field.name for field in fields(TrialIdentity)), "architecture"]
    if not isinstance(record, dict) or not record.keys() >= set(names):
        raise UserError(f"{file}: expected a mapping with {', '.join(names)}")
    return record
