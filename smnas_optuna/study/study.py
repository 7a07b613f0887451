"""Finding studies by name, and checking that a study's inference times come from one kind of device."""

import re

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState

from smnas_optuna.errors import UserError
from smnas_optuna.study.claim import ClaimLock
from smnas_optuna.study.optuna_internals import storage_of
from smnas_optuna.study.storage import open_storage


def load_study(url: str, name: str) -> optuna.Study:
    """Load an existing study for reading; creates neither a database nor a study.

    Args:
        url: Database URL, see :func:`~smnas_optuna.study.storage.open_storage`.
        name: Name of the study, such as ``coco/structural``.

    Raises:
        UserError: The database or the study does not exist; the message lists the studies of the database.
    """
    return find_study(open_storage(url, create=False), name, "--study")


def find_study(storage: BaseStorage, name: str, option: str) -> optuna.Study:
    """Return the study that a command-line option names.

    Args:
        storage: Storage to search.
        name: Name of the study.
        option: The option, for the error message, such as ``--study``.

    Raises:
        UserError: The study does not exist; the message lists the studies of the storage.
    """
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        names = ", ".join(sorted(study.study_name for study in storage.get_all_studies())) or "no study at all"
        raise UserError(f"{option} {name!r}: no such study; the database has {names}") from None


def relatives_of(study: optuna.Study) -> list[optuna.Study]:
    """Return the studies of both stages of a study's recipe, including the study itself, stage one first.

    They are found by their names alone, so this also works if the recipe can no longer be used. For a study of the
    stage ``transfer``, or one that this package did not create, only the study itself is returned.
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
    """Record the device of a study's first worker, and refuse workers with another device.

    Inference times of different devices are not comparable.

    Args:
        study: The study.
        storage: The storage that holds the study.
        device: Everything that may change a time, such as ``driver``, ``torch``, ``precision`` and ``power limit``, and
            the product's ``name``.
        mixed: Accept a device that differs. Each trial records the device that it was timed on.

    Returns:
        The device's name for trials to record. It is the product's name, followed in parentheses by what differs from
        the study's device.

    Raises:
        UserError: The device differs from the study's, inference time is an objective, and ``mixed`` is False.
    """
    # If several workers start at the same time, only one records its device.
    with ClaimLock(storage, study.study_name):
        recorded = study.user_attrs.get("device")
        if recorded is None:
            # A study that was started before devices were recorded may have trials with the name of one.
            trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
            names = [trial.user_attrs["device"] for trial in trials if "device" in trial.user_attrs]
            recorded = {**device, "name": names[0]} if names else device
            study.set_user_attr("device", recorded)
    # Former versions standardised the weights during timing, which takes longer, and recorded the precision of training
    # instead of that of timing.
    former = {"standardised weights": "computed", "layers": "eager"} | recorded
    if former.get("precision") == "mixed":
        former["precision"] = "float32"
    # A property that is known of one device only, such as a driver, is not compared.
    different = [key for key in former if key in device and former[key] != device[key]]
    if different and not mixed and "latency_ms" in (study.metric_names or ()):
        theirs = ", ".join(f"{key} {former[key]}" for key in different)
        mine = ", ".join(f"{key} {device[key]}" for key in different)
        raise UserError(
            f"study {study.study_name!r}: its times were measured with {theirs}, but this worker has {mine}; continue "
            "on the former device, start another study with --set name=, or accept both with --mixed-devices"
        )
    differences = [f"{key} {device[key]}" for key in different if key != "name"]
    return f"{device['name']} ({', '.join(differences)})" if differences else device["name"]
