"""Saves the detector that a search recommends as ``best/``, with a model card."""

import tempfile
from pathlib import Path
from typing import Final

import optuna
from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.detector.pretrained import Pretrained
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.reporting.detections import folder_of_trial
from smnas_optuna.reporting.model_card import CardFacts, model_card
from smnas_optuna.reporting.study_results import Objective
from smnas_optuna.run_study.session import Session
from smnas_optuna.study.retry import identity_of_trial
from smnas_optuna.training.job import BestRequest
from smnas_optuna.training.process import write_best
from smnas_optuna.training.trial_folder import belongs_to, move_aside, write_record

WRITING_SECONDS: Final = 30.0
"""About how long it takes to save a detector, besides its evaluation."""

_BEST, _CARD = "best", "README.md"


def save_best(
    session: Session,
    study: optuna.Study,
    number: int,
    accuracy: Objective,
    longer: optuna.Study | None,
    train_images: int,
) -> None:
    """Save the recommended detector with the best of its weights, unless that is done already.

    Args:
        session: The call of the command.
        study: Stage one's study.
        number: Trial that is recommended.
        accuracy: The objective that decides which weights are the best.
        longer: Study in which it was trained longer; None if there is none.
        train_images: Number of training images with objects in that study.

    Raises:
        UserError: The folder cannot be written.
    """
    found = study.get_trials(deepcopy=False)[number]
    owner, trial, remark = study, found, ""
    if longer is not None:
        owner, (trial, *_) = longer, longer.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        before, after = (float(each.user_attrs[accuracy.name]) for each in (found, trial))
        if accuracy.sign * after > accuracy.sign * before:
            owner, trial, train_images = study, found, session.dataset.train_images
            remark = (
                f"Longer training has brought it {accuracy.quantity.title} {after:.3f} on the validation images, where "
                f"the search had {before:.3f}, so these are the search's weights."
            )
    target, identity = session.folder / _BEST, identity_of_trial(owner, trial)
    architecture = Architecture.parse(trial.user_attrs["architecture"])
    value = f"{accuracy.quantity.title} {accuracy.quantity.text(trial.user_attrs[accuracy.name])}"
    if belongs_to(target, identity, architecture):
        session.say(f"{target}: is trial {number} already, {value}; delete it to have it written again")
        return
    if weights_of(session, owner, trial) is None:
        session.say(f"{target}: not written, since this machine lacks the weights of trial {number}")
        return
    try:
        # Written to a temporary folder and renamed, so that no unfinished one is left.
        with tempfile.TemporaryDirectory(dir=session.folder, prefix="unfinished-") as unfinished:
            folder = Path(unfinished) / _BEST
            folder.mkdir()
            recipe = session.options.recipe
            request = BestRequest(
                folder_of_trial(owner, trial, session.folder),
                identity,
                architecture,
                recipe.structural.detector,
                recipe.device.kind,
                folder,
            )
            written = write_best(request, session.folder / "output.log")
            facts = CardFacts(
                f"{study.study_name} trial {number}",
                str(getattr(session.dataset.source, "root", "handwritten digits of scikit-learn")),
                train_images,
                found.user_attrs["weights"],
                trial.user_attrs,
                remark,
            )
            (folder / _CARD).write_text(model_card(facts, written), encoding="utf-8")
            write_record(folder, identity, architecture)
            if target.exists():
                move_aside(target)
            folder.rename(target)
    except OSError as error:
        raise UserError(f"--output {session.folder}: cannot be written: {error.strerror}") from None
    lacks = f", without ONNX: {written.onnx}" if written.onnx else ""
    session.say(f"{target}: trial {number}, {value}{lacks}; python -m smnas_optuna.predict {target} PHOTO")


def weights_of(session: Session, study: optuna.Study, trial: FrozenTrial) -> Pretrained | None:
    """Return the weights that a trial has trained; None if they are not on this machine."""
    try:
        file = folder_of_trial(study, trial, session.folder) / "weights.pth"
    except UserError:
        return None
    if not file.is_file():
        return None
    return Pretrained(str(file), f"trial {trial.number} of {study.study_name}", of_detector=True)
