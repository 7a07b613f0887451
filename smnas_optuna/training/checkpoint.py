"""Checkpoints of an unfinished training, from which another process resumes it."""

import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner

from smnas_optuna.errors import UserError
from smnas_optuna.timing.device import amp_type
from smnas_optuna.training.job import AutomaticWeights, Job

_FILE_NAME = "checkpoint.pth"

# MMEngine's checkpoints contain objects of these types, which torch's safe loading refuses unless they are registered.
_CONSTRUCTORS: list[Any] = [HistoryBuffer, getattr, np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
_NUMBERS: list[Any] = [np.ndarray, np.dtype, np.dtypes.Float64DType, np.dtypes.Int64DType]
torch.serialization.add_safe_globals([*_CONSTRUCTORS, *_NUMBERS])


@dataclass(frozen=True)
class Checkpoint:
    """Description of a checkpoint file, without the tensors.

    Args:
        file: Path of the file.
        epochs: Number of epochs trained so far.
        seconds: Seconds that these epochs took.
        record: Settings of the training that saved it, see :func:`training_record`; empty if the file has none.
    """

    file: Path
    epochs: int
    seconds: float
    record: dict[str, Any]


class KeepCheckpoint(Hook):  # type: ignore[misc]  # mmengine is untyped
    """Saves model, optimizer and schedule after each epoch except the last, replacing the former checkpoint.

    The file is complete at any time: it is written under another name and then renamed.

    Args:
        folder: Existing folder to save to.
        record: Settings of the training, see :func:`training_record`; saved with the checkpoint.
        resumed: Checkpoint that training resumes from; None if it starts from the beginning.
    """

    def __init__(
        self, folder: Path, record: Mapping[str, Any] = MappingProxyType({}), resumed: Checkpoint | None = None
    ) -> None:
        self.record = dict(record)
        self.epochs_before = resumed.epochs if resumed else 0
        self.seconds_before = resumed.seconds if resumed else 0.0
        self._folder = folder
        self._started = 0.0

    def before_train(self, runner: Runner) -> None:
        """Record when training starts."""
        self._started = time.perf_counter()

    def after_train_epoch(self, runner: Runner) -> None:
        """Save a checkpoint, unless this was the last epoch."""
        if runner.epoch + 1 >= runner.max_epochs:
            return
        partial = f"{_FILE_NAME}.partial"
        seconds = self.seconds_before + time.perf_counter() - self._started
        meta = {"record": self.record, "train_seconds": seconds}
        # Raises an error if the folder's file system was unmounted; MMEngine would create the folder elsewhere.
        os.stat(self._folder)
        runner.save_checkpoint(str(self._folder), partial, meta=meta)
        if runner.rank == 0:
            os.replace(self._folder / partial, self._folder / _FILE_NAME)


def training_record(job: Job, parts: int) -> dict[str, Any]:
    """Return the settings that a training must have in common with the one whose checkpoint it resumes from.

    Args:
        job: The training.
        parts: Number of equal parts that each GPU's batch is split into (gradient accumulation).

    Returns:
        Values by name, such as ``training.epochs``; empty if the job belongs to no trial, so is never resumed.
    """
    if job.identity is None:
        return {}
    train, weights = job.dataset.train, job.weights
    assert not isinstance(weights, AutomaticWeights), "they have to be chosen before, see choose_weights"
    file = weights.file if weights else None
    sections = {
        "dataset": {
            # The content, not the path: machines may mount the same data at different places.
            "annotations": _digest(train.annotations),
            "classes": list(job.dataset.classes),
        },
        "detector": job.detector.model_dump(mode="json"),
        # The weights of this architecture are recorded below; the other two do not change the result of training.
        "training": job.training.model_dump(mode="json", exclude={"weights", "loader_workers", "time_limit_minutes"}),
        "device": {
            "kind": job.kind,
            "gpus_per_trial": job.device.gpus_per_trial,
            "gradient_accumulation": parts,
            "amp": amp_type() if job.training.amp and job.kind == "cuda" else None,
        },
    }
    return {
        "study": job.identity.study,
        "first_trial": job.identity.first_trial,
        "architecture": str(job.architecture),
        "weights": str(weights) if weights else None,
        "weights.content": _digest(file) if file and file.is_file() else None,
        **{f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()},
    }


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def find_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the checkpoint in a folder; None if there is none, or it cannot be loaded."""
    return _load(folder / _FILE_NAME)


def adopt_checkpoint(job: Job, record: dict[str, Any]) -> Checkpoint | None:
    """Link or copy the newest usable checkpoint of a job's former attempts into the job's folder.

    The job gets a file of its own, because the process of a former attempt that was taken for dead may still write.

    Args:
        job: The training.
        record: Settings that the checkpoint must have been trained with, see :func:`training_record`.

    Returns:
        The checkpoint in the job's folder; None if no former attempt left a usable one.

    Raises:
        OSError: The job's folder cannot be written.
    """
    for former in job.former if record else ():
        copied = job.folder / f"{_FILE_NAME}.former"
        if not _link_or_copy(former / _FILE_NAME, copied):
            continue
        checkpoint = _load(copied)
        problems = ["it cannot be loaded"] if checkpoint is None else _differences(checkpoint.record, record)
        if checkpoint is not None and not problems:
            file = copied.rename(job.folder / _FILE_NAME)
            return replace(checkpoint, file=file)
        copied.unlink()
        print(f"not resumed from {former / _FILE_NAME}: {'; '.join(problems)}", flush=True)
    return None


def resume(config: Config, checkpoint: Checkpoint) -> None:
    """Change an MMEngine config so that training resumes from a checkpoint."""
    config.load_from = str(checkpoint.file)
    config.resume = True


def delete_checkpoints(job: Job, record: dict[str, Any]) -> None:
    """Delete a finished job's checkpoint, and those of its former attempts that it could have resumed from."""
    former = filter(None, map(find_checkpoint, job.former if record else ()))
    for file in (job.folder / _FILE_NAME, *(checkpoint.file for checkpoint in former if checkpoint.record == record)):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:  # must not fail the finished job
            print(f"{file}: cannot be deleted: {error.strerror}", flush=True)


def _load(file: Path) -> Checkpoint | None:
    try:
        meta = torch.load(file, map_location="cpu", weights_only=True)["meta"]
        return Checkpoint(file, int(meta["epoch"]), float(meta.get("train_seconds", 0)), dict(meta.get("record", {})))
    except Exception:  # the file is absent, or damaged, for which unpickling raises errors of any type
        return None


def _differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    if not found:
        return ["it does not say which training it belongs to"]
    return [
        f"{key}: found {found.get(key)}, expected {expected.get(key)}"
        for key in dict.fromkeys([*expected, *found])
        if found.get(key) != expected.get(key)
    ]


def _link_or_copy(file: Path, target: Path) -> bool:
    """Link ``target`` to a file, or copy it if links are not supported; return False if it is absent or unreadable."""
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except FileNotFoundError:
        return False
    except OSError:  # a file system without links
        try:
            shutil.copyfile(file, target)
        except (FileNotFoundError, PermissionError):
            return False
    return True


def load_trained(place: str, file: Path) -> dict[str, Any]:
    """Load the weights of a trained detector.

    Args:
        place: How error messages name the file, such as ``--checkpoint weights.pth``.
        file: Path of the file.

    Returns:
        A dictionary with ``state_dict`` and ``meta``; ``meta["dataset_meta"]["classes"]`` are the names of the classes.

    Raises:
        UserError: The file cannot be loaded, or is not a checkpoint of a detector.
    """
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a damaged file raises errors of any type
        message = str(error).partition("\n")[0]
        raise UserError(f"{place}: cannot be loaded: {type(error).__name__}: {message}") from None
    try:
        checkpoint["meta"]["dataset_meta"]["classes"], checkpoint["state_dict"]
    except (KeyError, TypeError, IndexError):
        raise UserError(
            f"{place}: not a trained detector; expected a trial's weights.pth, or a checkpoint that "
            "smnas_optuna.train or MMDetection's tools have saved"
        ) from None
    assert isinstance(checkpoint, dict)
    return checkpoint
