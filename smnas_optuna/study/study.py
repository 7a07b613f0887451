"""Studies: create or resume one, and which descends from which."""

import re

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState

from smnas_optuna.errors import UserError
from smnas_optuna.study.claim import ClaimLock
from smnas_optuna.study.optuna_internals import storage_of
from smnas_optuna.study.storage import open_storage


def load_study(url: str, name: str) -> optuna.Study:
    """Open an existing study, to look at it only.

    Raises:
        UserError: There is no such database or no such study; the text lists the studies that there are.
    """
    return find_study(open_storage(url, create=False), name, "--study")


def find_study(storage: BaseStorage, name: str, option: str) -> optuna.Study:
    """Return a study that an option of the command line names; raises UserError, which lists those that there are."""
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        names = ", ".join(sorted(study.study_name for study in storage.get_all_studies())) or "no study at all"
        raise UserError(f"{option} {name!r}: no such study; the database has {names}") from None


def relatives_of(study: optuna.Study) -> list[optuna.Study]:
    """Return the studies of both stages of a study's recipe, itself among them, stage one first.

    They are recognised by their names, so the recipe need not be usable. A study of the stage ``transfer``, or one that
    this package has not made, has no other.
    """
    of_a_stage = re.compile(r"(.+)/(structural|modular/C\d+)")
    own = of_a_stage.fullmatch(study.study_name)
    if own is None or "recipe" not in study.user_attrs:
        return [study]
    storage = storage_of(study)
    matches = filter(None, map(of_a_stage.fullmatch, optuna.get_all_study_names(storage)))
    names = sorted(
        (match[0] for match in matches if match[1] == own[1]), key=lambda name: (name.count("/"), len(name), name)
    )
    return [optuna.load_study(study_name=name, storage=storage) for name in names]


def agree_on_device(study: optuna.Study, storage: RDBStorage, device: dict[str, str], *, mixed: bool = False) -> str:
    """Record the first worker's device on a study, and refuse to mix its times with those of another.

    Args:
        study: Whose trials are timed.
        storage: Where it is.
        device: What may change a time, by name: product, driver, torch, precision, power limit.
        mixed: Let devices differ; each trial says on which it was timed.

    Returns:
        The name of the device for trials that are timed on it, which is the product's, with what differs from the
        study's device.

    Raises:
        UserError: Inference time is an objective, and the study's device differs.
    """
    # So that of several workers that begin at the same time one records.
    with ClaimLock(storage, study.study_name):
        recorded = study.user_attrs.get("device")
        if recorded is None:
            # Together with the device of a study that was begun before devices were recorded.
            trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
            names = [trial.user_attrs["device"] for trial in trials if "device" in trial.user_attrs]
            recorded = {**device, "name": names[0]} if names else device
            study.set_user_attr("device", recorded)
    # Earlier versions timed standardised weights as they are trained, which takes longer, and recorded the precision of
    # training for that of timing.
    former = {"standardised weights": "computed", "layers": "eager"} | recorded
    if former.get("precision") == "mixed":
        former["precision"] = "float32"
    # What could be read on one of them only, such as a driver, is not compared.
    different = [key for key in former if key in device and former[key] != device[key]]
    if different and not mixed and "latency_ms" in (study.metric_names or ()):
        theirs = ", ".join(f"{key} {former[key]}" for key in different)
        mine = ", ".join(f"{key} {device[key]}" for key in different)
        raise UserError(
            f"study {study.study_name!r}: its times were measured with {theirs}, and here is {mine}; go on there, "
            "start another study with --set name=, or take times of both with --mixed-devices"
        )
    differences = [f"{key} {device[key]}" for key in different if key != "name"]
    return f"{device['name']} ({', '.join(differences)})" if differences else device["name"]
