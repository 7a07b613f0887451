"""Checkpoints of a training under way, so that one whose process has died is gone on with."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner

from smnas_optuna.errors import UserError

_NAME = "checkpoint.pth"

# What MMEngine keeps beside tensors, and torch's safe loading refuses without being told.
_MADE_BY: list[Any] = [HistoryBuffer, getattr, np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
_NUMBERS: list[Any] = [np.ndarray, np.dtype, np.dtypes.Float64DType, np.dtypes.Int64DType]
torch.serialization.add_safe_globals([*_MADE_BY, *_NUMBERS])


class KeepCheckpoint(Hook):  # type: ignore[misc]  # mmengine is untyped
    """Saves model, optimizer and schedule after each epoch, over those of the epoch before.

    The file is complete at any time: it is written beside and moved into place.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def after_train_epoch(self, runner: Runner) -> None:
        """Save, unless training is over."""
        if runner.epoch + 1 >= runner.max_epochs:
            return
        partial = f"{_NAME}.partial"
        meta = {"accumulative_counts": _accumulative_counts(runner.cfg)}
        # MMEngine would make the folder anew where it is gone together with the file system that it was on.
        os.stat(self._folder)
        runner.save_checkpoint(str(self._folder), partial, meta=meta)
        if runner.rank == 0:
            os.replace(self._folder / partial, self._folder / _NAME)


def resume(config: Config, folder: Path) -> int:
    """Let a config's training go on with the checkpoint that an interrupted process has left in a folder.

    Returns:
        How many epochs are trained already; 0 where there is nothing that could be gone on with.
    """
    try:
        checkpoint = torch.load(folder / _NAME, map_location="cpu", weights_only=True)
        epochs = int(checkpoint["meta"]["epoch"])
        parts = checkpoint["meta"].get("accumulative_counts", 1)
    except Exception:  # no file, or whatever an unpickler may raise of one that a file system has spoiled
        return 0
    # With another number of iterations per epoch its schedule would not be this training's.
    if parts != _accumulative_counts(config):
        return 0
    config.load_from = str(folder / _NAME)
    config.resume = True
    return epochs


def _accumulative_counts(config: Config) -> int:
    return int(config.optim_wrapper.get("accumulative_counts", 1))


def load_trained(file: Path) -> dict[str, Any]:
    """Return a trained detector's ``state_dict`` and ``meta``, which has its ``dataset_meta`` with its classes.

    Raises:
        UserError: It cannot be loaded, or is not a checkpoint of a detector.
    """
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file system or an unpickler may raise
        told = str(error).partition("\n")[0]
        raise UserError(f"--checkpoint {file}: cannot be loaded: {type(error).__name__}: {told}") from None
    try:
        checkpoint["meta"]["dataset_meta"]["classes"], checkpoint["state_dict"]
    except (KeyError, TypeError, IndexError):
        raise UserError(
            f"--checkpoint {file}: is no trained detector; expected a trial's weights.pth, or a file that "
            "smnas_optuna.train or MMDetection's tools have saved"
        ) from None
    assert isinstance(checkpoint, dict)
    return checkpoint


def forget_checkpoint(folder: Path) -> None:
    """Delete a checkpoint that is not needed any more."""
    (folder / _NAME).unlink(missing_ok=True)
