"""Checkpoints of a training under way, from which another process resumes it."""

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
from smnas_optuna.training.job import Job

_NAME = "checkpoint.pth"

# What MMEngine keeps beside tensors, and torch's safe loading refuses without being told.
_MADE_BY: list[Any] = [HistoryBuffer, getattr, np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
_NUMBERS: list[Any] = [np.ndarray, np.dtype, np.dtypes.Float64DType, np.dtypes.Int64DType]
torch.serialization.add_safe_globals([*_MADE_BY, *_NUMBERS])


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint without its tensors.

    Args:
        file: Where it is.
        epochs: Epochs trained so far.
        seconds: Time that they took.
        record: What it belongs to, see :func:`training_record`; empty if it does not say.
    """

    file: Path
    epochs: int
    seconds: float
    record: dict[str, Any]


class KeepCheckpoint(Hook):  # type: ignore[misc]  # mmengine is untyped
    """Saves model, optimizer and schedule after each epoch, over those of the epoch before.

    The file is complete at any time: it is written beside and moved into place.

    Args:
        folder: Where to save.
        record: What the checkpoint belongs to, see :func:`training_record`.
        resumed: The checkpoint that training resumes from, if any.
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
        """Start the clock."""
        self._started = time.perf_counter()

    def after_train_epoch(self, runner: Runner) -> None:
        """Save, unless training is over."""
        if runner.epoch + 1 >= runner.max_epochs:
            return
        partial = f"{_NAME}.partial"
        seconds = self.seconds_before + time.perf_counter() - self._started
        meta = {"record": self.record, "train_seconds": seconds}
        # MMEngine would make the folder anew where it is gone together with the file system that it was on.
        os.stat(self._folder)
        runner.save_checkpoint(str(self._folder), partial, meta=meta)
        if runner.rank == 0:
            os.replace(self._folder / partial, self._folder / _NAME)


def training_record(job: Job, parts: int) -> dict[str, Any]:
    """Return all that a checkpoint has to share with a training that resumes from it; empty if it belongs to no trial.

    Args:
        job: The training.
        parts: In how many each GPU's batch goes through the detector.
    """
    if job.belonging is None:
        return {}
    train = job.dataset.train
    sections = {
        "dataset": {
            # Not where they are: machines mount the same data at different places.
            "annotations": _digest(train.annotations),
            "classes": list(job.dataset.classes),
        },
        "detector": job.detector.model_dump(mode="json"),
        # The weights below are those of this backbone; the other two do not change what is trained.
        "training": job.training.model_dump(mode="json", exclude={"weights", "loader_workers", "time_limit_minutes"}),
        "device": {"kind": job.kind, "gpus_per_trial": job.device.gpus_per_trial, "gradient_accumulation": parts},
    }
    return {
        "study": job.belonging.study,
        "first_trial": job.belonging.first_trial,
        "architecture": str(job.architecture),
        "weights": job.weights,
        "weights.content": _digest(Path(job.weights)) if job.weights and Path(job.weights).is_file() else None,
        **{f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()},
    }


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def find_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the checkpoint in a folder; None where there is none that can be loaded."""
    return _load(folder / _NAME)


def adopt_checkpoint(job: Job, record: dict[str, Any]) -> Checkpoint | None:
    """Take the newest checkpoint of a job's former attempts that it can resume from into the job's folder.

    A process that was thought dead may still write the former ones.

    Args:
        job: The training.
        record: What the checkpoint has to share with it, see :func:`training_record`.

    Returns:
        The checkpoint in the job's folder; None where there is none.

    Raises:
        OSError: The job's folder cannot be written.
    """
    for former in job.former if record else ():
        candidate = job.folder / f"{_NAME}.candidate"
        if not _link_or_copy(former / _NAME, candidate):
            continue
        found = _load(candidate)
        different = ["it cannot be loaded"] if found is None else _differences(found.record, record)
        if found is not None and not different:
            file = candidate.rename(job.folder / _NAME)
            return replace(found, file=file)
        candidate.unlink()
        print(f"not resumed from {former / _NAME}: {'; '.join(different)}", flush=True)
    return None


def resume(config: Config, checkpoint: Checkpoint) -> None:
    """Let a config's training resume from a checkpoint."""
    config.load_from = str(checkpoint.file)
    config.resume = True


def delete_checkpoints(job: Job, record: dict[str, Any]) -> None:
    """Delete a finished job's checkpoint, and those of its former attempts that it could have resumed from."""
    former = filter(None, map(find_checkpoint, job.former if record else ()))
    for file in (job.folder / _NAME, *(found.file for found in former if found.record == record)):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:  # the job is done all the same
            print(f"{file}: cannot be deleted: {error.strerror}", flush=True)


def _load(file: Path) -> Checkpoint | None:
    try:
        meta = torch.load(file, map_location="cpu", weights_only=True)["meta"]
        return Checkpoint(file, int(meta["epoch"]), float(meta.get("train_seconds", 0)), dict(meta.get("record", {})))
    except Exception:  # no file, or whatever an unpickler may raise of one that a file system has spoiled
        return None


def _differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    if not found:
        return ["it does not say what it belongs to"]
    return [
        f"{key}: found {found.get(key)}, expected {expected.get(key)}"
        for key in dict.fromkeys([*expected, *found])
        if found.get(key) != expected.get(key)
    ]


def _link_or_copy(file: Path, target: Path) -> bool:
    """Give a file's content, as it is now, a second name; return whether there is such a file that can be read."""
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
    """Return a trained detector's ``state_dict`` and ``meta``, which has its ``dataset_meta`` with its classes.

    Args:
        place: Names the file in messages, such as ``--checkpoint weights.pth``.
        file: The file.

    Raises:
        UserError: It cannot be loaded, or is not a checkpoint of a detector.
    """
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file system or an unpickler may raise
        message = str(error).partition("\n")[0]
        raise UserError(f"{place}: cannot be loaded: {type(error).__name__}: {message}") from None
    try:
        checkpoint["meta"]["dataset_meta"]["classes"], checkpoint["state_dict"]
    except (KeyError, TypeError, IndexError):
        raise UserError(
            f"{place}: is no trained detector; expected a trial's weights.pth, or a file that "
            "smnas_optuna.train or MMDetection's tools have saved"
        ) from None
    assert isinstance(checkpoint, dict)
    return checkpoint
