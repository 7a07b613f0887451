"""Detections of a study's trials drawn side by side, beside the ground truth."""

from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.errors import UserError
from smnas_optuna.reporting.quantity import MISSING, quantity_of
from smnas_optuna.study.retry import belonging_of, interrupted_before
from smnas_optuna.training.job import Column, Comparison
from smnas_optuna.training.process import draw, preload
from smnas_optuna.training.trial_folder import find_folder

_FORMATS = (".png", ".jpg", ".jpeg")
_FILES = ("config.py", "weights.pth")


def draw_detections(
    study: optuna.Study,
    trials: Sequence[int],
    folder: Path,
    images: Sequence[str] | int = 4,
    threshold: float = 0.5,
    *,
    path: Path,
) -> Path:
    """Draw what trials detect in validation images beside the ground truth, a row per image, and return ``path``.

    Args:
        study: Made by ``run_study``.
        trials: Numbers of finished trials, a column for each in this order.
        folder: The run's output folder, with ``structural/trial_00003`` and so on below.
        images: File names as in the validation split's annotations, or how many images with objects to take, spread
            over the split.
        threshold: Lowest score, 0 to 1, of a detection that is drawn. The paper's Figs 9 to 11 have 0.5.
        path: Of the picture, a PNG or JPEG; its folder is made when missing.

    Raises:
        UserError: A trial, a file of it or an image is not there, or the picture cannot be written.
    """
    if not trials:
        raise UserError("--trials: found none; expected numbers of finished trials, such as 3,7")
    if not images:
        raise UserError("--images: found none; expected file names or a number from 1")
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"--save {path}: expected a file that ends in {', '.join(_FORMATS)}")
    found = study.get_trials(deepcopy=False)
    columns = tuple(_column(study, _finished_trial(study.study_name, found, number), folder) for number in trials)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--save {path}: cannot be written: {error.strerror}") from None
    preload()
    chosen = images if isinstance(images, int) else tuple(images)
    draw(Comparison(columns, chosen, threshold, path.resolve()), folder / "output.log")
    return path


def _column(study: optuna.Study, trial: FrozenTrial, folder: Path) -> Column:
    architecture = str(trial.user_attrs.get("architecture", MISSING))
    belonging = belonging_of(study, trial.number, interrupted_before(trial))
    place = find_folder(folder / _path_of(study), belonging, architecture)
    for name in _FILES:
        if not (place / name).is_file():
            absent = (place / name).relative_to(folder)
            raise UserError(f"--output {folder}: has no {absent}; expected the folder that the study was run with")
    values = [quantity_of(name).text_with_unit(trial.user_attrs.get(name)) for name in ("map", "latency_ms")]
    title = f"trial {trial.number}: mAP {values[0]}, {values[1]}"
    return Column(place.resolve(), title, architecture, belonging)


def _finished_trial(study_name: str, trials: Sequence[FrozenTrial], number: int) -> FrozenTrial:
    finished = [str(trial.number) for trial in trials if trial.state == TrialState.COMPLETE]
    expected = f"expected a finished trial, such as {', '.join(finished[:3])}" if finished else "none has finished yet"
    if not 0 <= number < len(trials):
        raise UserError(f"--trials {number}: no such trial in {study_name!r}; {expected}")
    state = trials[number].state
    if state != TrialState.COMPLETE:
        raise UserError(f"--trials {number}: this trial of {study_name!r} is {state.name.lower()}; {expected}")
    return trials[number]


def _path_of(study: optuna.Study) -> str:
    """Return where a study's trials are below its run's folder: ``structural``, ``modular/C0``."""
    recipe, separator, path = study.study_name.partition("/")
    if not separator:
        raise UserError(f"--study {recipe!r}: not made by run_study; expected RECIPE/structural or RECIPE/modular/C0")
    return path
