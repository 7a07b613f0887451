"""Folders of trials: each says which trial of which study it belongs to, and is used for no other."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.training.job import Belonging

_RECORD = "trial.json"


def folder_of(base: Path, number: int) -> Path:
    """Return where a trial's folder is below its study's."""
    return base / f"trial_{number:05d}"


def prepare_folder(folder: Path, belonging: Belonging, architecture: Architecture | str) -> Path | None:
    """Make the folder of a trial that is about to be evaluated, for the first and only time.

    Whatever is there already is therefore from another study, such as one whose database has been deleted.

    Args:
        folder: The trial's, see :func:`folder_of`.
        belonging: The trial.
        architecture: The trial's architecture.

    Returns:
        Where former content of the folder has been moved, such as ``trial_00012.former-1``; None if there was none.

    Raises:
        OSError: The folder cannot be made, moved or written.
    """
    former = None if _is_vacant(folder) else _move_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _RECORD).write_text(json.dumps(record_of(belonging, architecture), indent=2) + "\n", encoding="utf-8")
    return former


def find_folder(base: Path, belonging: Belonging, architecture: str) -> Path:
    """Return the folder that a trial was evaluated in; where there is none, the folder in which it should be.

    A folder without a record is from a version that wrote none, in which a trial that repeated interrupted ones used
    the folder of the first. Check its weights with :func:`check_record`.

    Args:
        base: Folder of the study's trials, such as ``work_dirs/coco/structural``.
        belonging: The trial.
        architecture: The trial's architecture.

    Raises:
        UserError: Only another study's, trial's or architecture's folder is there.
    """
    own = folder_of(base, belonging.trial)
    if not (own / _RECORD).exists():
        first = folder_of(base, belonging.first_trial)
        return first if first.exists() and not (first / _RECORD).exists() else own
    # A later run with another database may have moved it aside.
    former = (folder for folder in sorted(base.glob(f"{own.name}.former-*")) if (folder / _RECORD).exists())
    mismatches = []
    for folder in (own, *former):
        try:
            check_record(str(folder), _read_record(folder), belonging, architecture)
        except UserError as mismatch:
            mismatches.append(mismatch)
        else:
            return folder
    raise mismatches[0]


def record_of(belonging: Belonging, architecture: Architecture | str) -> dict[str, Any]:
    """Return what a trial's folder and its weights record of the trial they belong to."""
    return {**asdict(belonging), "architecture": str(architecture)}


def check_record(place: str, found: Mapping[str, Any], belonging: Belonging | None, architecture: str) -> None:
    """Make sure that a folder or weights belong to a trial.

    Args:
        place: Names what is checked, in messages.
        found: Its record, see :func:`record_of`. What it does not say is not checked: earlier versions recorded less.
        belonging: The trial; None to check the architecture only.
        architecture: The trial's architecture.

    Raises:
        UserError: They belong to another study, trial or architecture.
    """
    if belonging is not None and "study" in found:
        # Studies of earlier versions have no id.
        key = "study" if belonging.study else "study_name"
        if found[key] != getattr(belonging, key):
            theirs = _study_text(found["study_name"], found["study"])
            ours = _study_text(belonging.study_name, belonging.study)
            raise UserError(f"{place}: is of another study: found {theirs}, expected {ours}")
        if found["trial"] != belonging.trial:
            raise UserError(f"{place}: is of another trial: found {found['trial']}, expected {belonging.trial}")
    if found.get("architecture", architecture) != architecture:
        raise UserError(f"{place}: is of another detector: found {found['architecture']}, expected {architecture}")


def _study_text(name: str, identifier: str) -> str:
    return f"{name!r} with id {identifier}" if identifier else f"{name!r} without id"


def _is_vacant(folder: Path) -> bool:
    try:
        return not any(folder.iterdir())
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False


def _move_aside(folder: Path) -> Path:
    for number in itertools.count(1):
        free = folder.with_name(f"{folder.name}.former-{number}")
        if not free.exists():
            return folder.rename(free)
    raise AssertionError


def _read_record(folder: Path) -> dict[str, Any]:
    file = folder / _RECORD
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    names = [*(field.name for field in fields(Belonging)), "architecture"]
    if not isinstance(found, dict) or not found.keys() >= set(names):
        raise UserError(f"{file}: expected a mapping with {', '.join(names)}")
    return found
