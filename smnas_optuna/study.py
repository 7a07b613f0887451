"""Studies: create or resume one, which descends from which, and take up what an ended process left behind."""

import re
import socket
import time
import warnings
from datetime import datetime
from typing import Any

import numpy as np
import optuna
import psutil
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url

from smnas_optuna.architecture import Architecture
from smnas_optuna.errors import UserError
from smnas_optuna.recipe import Recipe
from smnas_optuna.samplers import create_sampler
from smnas_optuna.search import Candidate, Search
from smnas_optuna.storage import database_errors, open_storage

INTERRUPTED = "interrupted: the process that evaluated it ended"

_MAXIMISED = ("map", "map_50", "map_75")
# Trials before the sampler's model takes over, or a quarter of a short search.
_STARTUP_TRIALS = 10
# How long after a trial's start its process may take to sign it.
_SIGNING_SECONDS = 2.0


def load_study(url: str, name: str) -> optuna.Study:
    """Open an existing study, to look at it only.

    Raises:
        UserError: There is no such database or no such study; the text lists the studies that there are.
    """
    storage = open_storage(url, create=False)
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        names = ", ".join(sorted(study.study_name for study in storage.get_all_studies())) or "no study at all"
        raise UserError(f"--study {name!r}: no such study; the database has {names}") from None


def open_study(
    storage: RDBStorage, search: Search, *, sampler: str | None = None, seed: int | None = None
) -> optuna.Study:
    """Create the study of a search with what it starts from enqueued, or resume it.

    Args:
        storage: Where.
        search: What to search.
        sampler: Instead of the recipe's.
        seed: For the sampler; with the same seed and the same study so far it goes on in the same way.

    Raises:
        UserError: A study of this name was made from a recipe in which trials mean something else, for another
            candidate, or not by this package; the text lists what differs.
    """
    settings, name = search.settings, search.study_name
    directions = [
        StudyDirection.MAXIMIZE if objective in _MAXIMISED else StudyDirection.MINIMIZE
        for objective in settings.objectives
    ]
    if name in optuna.get_all_study_names(storage):
        _refuse_other_search(search, storage)
    with database_errors(make_url(storage.url)):
        study = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
    if "recipe" not in study.user_attrs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(settings.objectives))
        if search.candidate is not None:
            study.set_user_attr("candidate", _record_of(search))
        study.set_user_attr("recipe", search.recipe.model_dump(mode="json"))
    chosen = sampler or settings.sampler
    if seed is not None and chosen != "pop":
        # The same random numbers again would propose the same architectures again; pop's depend on the trial's number.
        trials = len(study.get_trials(deepcopy=False))
        seed = int(np.random.SeedSequence([seed, trials]).generate_state(1)[0])
    study.sampler = create_sampler(
        chosen,
        seed,
        search.space.suggest,
        search.order,
        search.known_objectives,
        n_startup_trials=max(1, min(_STARTUP_TRIALS, settings.trials // 4)),
    )
    for architecture in search.starts:
        study.enqueue_trial(search.space.params(architecture), skip_if_exists=True)
    return study


def candidates_of(storage: RDBStorage, recipe: Recipe) -> list[Candidate]:
    """Return the candidates that have studies of stage two, by their numbers."""
    found = []
    for study in storage.get_all_studies():
        recorded = study.user_attrs.get("candidate")
        if recorded and re.fullmatch(rf"{re.escape(recipe.name)}/modular/C\d+", study.study_name):
            number = int(study.study_name.rpartition("/C")[2])
            architecture = Architecture.parse(recorded["architecture"])
            found.append(Candidate(number, recorded["study"], recorded["trial"], architecture))
    return sorted(found, key=lambda candidate: candidate.number)


def _record_of(search: Search) -> dict[str, Any]:
    """Return what a study of stage two keeps of its parentage."""
    candidate = search.candidate
    assert candidate is not None
    return {
        "study": candidate.study,
        "trial": candidate.trial,
        "architecture": str(candidate.architecture),
        "baseline": str(search.baseline),
    }


def _refuse_other_search(search: Search, storage: RDBStorage) -> None:
    name = search.study_name
    study_id = storage.get_study_id_from_name(name)
    attributes = storage.get_study_user_attrs(study_id)
    recorded = attributes.get("recipe")
    if recorded is None:
        # Its maker may have been killed before it could record the recipe; then there is no trial either.
        if storage.get_n_trials(study_id) > 0:
            raise UserError(f"study {name!r}: not made by run_study; choose another name with --set name=")
        return
    different = search.recipe.differing_keys(recorded, search.stage)
    if different:
        raise UserError(
            f"study {name!r}: made from a recipe that differs in {', '.join(different)}; give those their former "
            "values to resume it, or start another study with --set name="
        )


def refuse_other_device(study: optuna.Study, device: str) -> None:
    """Refuse to mix times that were measured on different devices in one study.

    Raises:
        UserError: Inference time is an objective, and the study has times of another device.
    """
    trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    others = sorted({str(trial.user_attrs["device"]) for trial in trials if "device" in trial.user_attrs} - {device})
    if others and "latency_ms" in (study.metric_names or ()):
        raise UserError(
            f"study {study.study_name!r}: its times were measured on {', '.join(others)}, and this device is {device}; "
            "go on there, or start another study with --set name="
        )


def this_worker() -> str:
    """Return a text that tells this process from every other, on this machine and others, now and later."""
    process = psutil.Process()
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.2f}"


def requeue_orphans(study: optuna.Study, storage: RDBStorage) -> list[int]:
    """Fail the running trials whose process on this machine has ended, and enqueue their architectures again.

    Trials that run in live processes, or on other machines, are left alone.

    Returns:
        The numbers of the trials that were taken up.
    """
    taken = []
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if "worker" not in trial.user_attrs and trial.datetime_start is not None:
            # It was started by a process that was killed at once, or that is about to sign it.
            age = (datetime.now() - trial.datetime_start).total_seconds()
            time.sleep(min(max(0.0, _SIGNING_SECONDS - age), _SIGNING_SECONDS))
            trial = storage.get_trial(trial._trial_id)
        if trial.state == TrialState.RUNNING and _ended(trial.user_attrs.get("worker")):
            requeue(study, storage, trial)
            taken.append(trial.number)
    return taken


def requeue(study: optuna.Study, storage: RDBStorage, trial: FrozenTrial) -> None:
    """Fail a running trial as interrupted and enqueue its architecture again.

    In this order: killed in between, the architecture would stand in the queue twice, and the second is recognised.
    """
    params = trial.system_attrs.get("fixed_params") or ("architecture" in trial.user_attrs and trial.params)
    if params:
        study.enqueue_trial(params)
    storage.set_trial_user_attr(trial._trial_id, "reason", INTERRUPTED)
    study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _ended(worker: str | None) -> bool:
    if worker is None:
        return True
    host, pid, created = worker.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" != created
    except psutil.NoSuchProcess:
        return True


def evaluated_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that count: completed, or failed for a reason of their architecture's own."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.FAIL])
        if trial.state == TrialState.COMPLETE or trial.user_attrs.get("reason", INTERRUPTED) != INTERRUPTED
    ]
