"""Checks that weights fit a backbone."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mmengine.runner import CheckpointLoader

from smnas_optuna.detector.counting import build_on_meta
from smnas_optuna.detector.pretrained import UnfitWeights
from smnas_optuna.errors import UserError


def check_weights(place: str, weights: str, backbone: dict[str, Any], *, otherwise: str, prefix: str = "") -> None:
    """Raise UserError if weights do not fit a backbone; MMEngine would only log which tensors stay random.

    Further tensors in the checkpoint, such as a classifier's or those of a stage that is not built, are ignored.

    Args:
        place: Beginning of the error message: where the weights were named.
        weights: URI or file of a checkpoint.
        backbone: Config of the backbone.
        otherwise: What else could be named there, for the error message.
        prefix: Beginning of the names of the backbone's tensors in the checkpoint.

    Raises:
        UserError: The checkpoint cannot be loaded, or lacks a tensor of the backbone; the message names the first one.
    """
    try:
        checkpoint = CheckpointLoader.load_checkpoint(weights, map_location="cpu")
    except UnfitWeights as error:
        raise UserError(f"{place} does not fit: {error}") from None
    except Exception as error:  # whatever a download, a file system or an unpickler may raise
        raise UserError(
            f"{place} cannot be loaded ({str(error).partition(chr(10))[0]}); expected it to be reachable or in "
            f"{torch.hub.get_dir()}/checkpoints, or {otherwise}"
        ) from None
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else {}
    # Like MMEngine, accepts the prefix of models that were saved in the wrapper for several GPUs.
    shapes = {str(key).removeprefix("module."): getattr(value, "shape", None) for key, value in state.items()}
    found = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
    expected = {
        key: tensor.shape
        for key, tensor in build_on_meta(backbone).state_dict().items()
        if not key.endswith("num_batches_tracked")  # old checkpoints lack it, and nothing depends on it
    }
    check_shapes(place, expected, found, expected)


def check_shapes(place: str, expected: Mapping[str, Any], found: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raise UserError if a tensor's shape differs, or is missing on one side; the message names the first one.

    Args:
        place: Beginning of the error message.
        expected: Expected shapes by the tensors' names.
        found: Found shapes by the tensors' names.
        keys: Names of the tensors to check.
    """
    for key in keys:
        shapes = [tuple(shape) if shape is not None else None for shape in (expected.get(key), found.get(key))]
        if shapes[0] != shapes[1]:
            raise UserError(f"{place} does not fit: expected {key} of shape {shapes[0]}, found {shapes[1]}")
