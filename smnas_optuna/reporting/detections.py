"""Drawing the detections of several trials side by side."""

from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.errors import UserError
from smnas_optuna.reporting.quantity import MISSING, quantity_of
from smnas_optuna.study.retry import identity_of_trial
from smnas_optuna.training.job import Column, Comparison
from smnas_optuna.training.process import draw
from smnas_optuna.training.server import preload
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
    """Draw the detections of trials in validation images, with a row per image and a column per trial.

    The first column is the ground truth.

    Args:
        study: A study made by ``run_study``.
        trials: Numbers of finished trials, in the order of the columns.
        folder: Output folder of the run, which contains folders such as ``structural/trial_00003``.
        images: File names as in the validation split's annotations, or the number of images with objects to choose,
            spread over the split.
        threshold: Lowest score of a detection that is drawn, 0 to 1. The paper's Figs 9 to 11 use 0.5.
        path: PNG or JPEG file to write; its folder is created if absent.

    Returns:
        ``path``.

    Raises:
        UserError: A trial, one of its files or an image does not exist, or the picture cannot be written.
    """
    if not trials:
        raise UserError("--trials: found none; expected numbers of finished trials, such as 3,7")
    if not images:
        raise UserError("--images: found none; expected file names or a number from 1")
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"--save {path}: expected a file that ends in {', '.join(_FORMATS)}")
    existing = study.get_trials(deepcopy=False)
    columns = tuple(_column(study, _finished_trial(study.study_name, existing, number), folder) for number in trials)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--save {path}: cannot be written: {error.strerror}") from None
    preload()
    requested = images if isinstance(images, int) else tuple(images)
    draw(Comparison(columns, requested, threshold, path.resolve()), folder / "output.log")
    return path


def folder_of_trial(study: optuna.Study, trial: FrozenTrial, folder: Path) -> Path:
    """Return the folder that a trial was evaluated in; if it does not exist, the path where it should be.

    Args:
        study: The trial's study.
        trial: The trial.
        folder: Output folder of the run.

    Raises:
        UserError: The folder belongs to another study, trial or architecture.
    """
    architecture = str(trial.user_attrs.get("architecture", MISSING))
    return find_folder(folder / _path_of(study), identity_of_trial(study, trial), architecture)


def _column(study: optuna.Study, trial: FrozenTrial, folder: Path) -> Column:
    architecture = str(trial.user_attrs.get("architecture", MISSING))
    identity = identity_of_trial(study, trial)
    trial_folder = folder_of_trial(study, trial, folder)
    for name in _FILES:
        if not (trial_folder / name).is_file():
            absent = (trial_folder / name).relative_to(folder)
            raise UserError(f"--output {folder}: has no {absent}; expected the folder that the study was run with")
    values = [quantity_of(name).text_with_unit(trial.user_attrs.get(name)) for name in ("map", "latency_ms")]
    title = f"trial {trial.number}: mAP {values[0]}, {values[1]}"
    return Column(trial_folder.resolve(), title, architecture, identity)


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
    """Return the path of a study's folder in the run's folder, such as ``structural`` or ``modular/C0``."""
    recipe, separator, path = study.study_name.partition("/")
    if not separator:
        raise UserError(f"--study {recipe!r}: not made by run_study; expected RECIPE/structural or RECIPE/modular/C0")
    return path
