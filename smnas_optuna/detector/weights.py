"""Pre-trained weights of a backbone: whether they are that backbone's."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mmengine.runner import CheckpointLoader

from smnas_optuna.detector.counting import build_on_meta
from smnas_optuna.errors import UserError


def check_weights(place: str, weights: str, backbone: dict[str, Any], *, otherwise: str) -> None:
    """Refuse weights that a backbone cannot begin with; MMEngine would only log what it leaves at random.

    Tensors that the backbone has no use for, such as a classifier's or those of a stage that it lacks, do no harm.

    Args:
        place: Begins the message: where the weights were asked for.
        weights: A checkpoint's URI or file.
        backbone: Its config.
        otherwise: What else could be asked for there.

    Raises:
        UserError: They cannot be loaded, or lack a tensor of the backbone; the text names the first.
    """
    try:
        checkpoint = CheckpointLoader.load_checkpoint(weights, map_location="cpu")
    except Exception as error:  # whatever a download, a file system or an unpickler may raise
        raise UserError(
            f"{place} cannot be loaded ({str(error).partition(chr(10))[0]}); expected it within reach or in "
            f"{torch.hub.get_dir()}/checkpoints, or {otherwise}"
        ) from None
    given = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else {}
    # MMEngine takes the weights of a model that was saved in its wrapper for several GPUs.
    shapes = {str(key).removeprefix("module."): getattr(value, "shape", None) for key, value in given.items()}
    wanted = {
        key: tensor.shape
        for key, tensor in build_on_meta(backbone).state_dict().items()
        if not key.endswith("num_batches_tracked")  # which old checkpoints lack, and nothing depends on
    }
    check_shapes(place, wanted, shapes, wanted)


def check_shapes(place: str, wanted: Mapping[str, Any], found: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raise UserError, which begins with the place, at the first of some keys whose shapes differ or are not both."""
    for key in keys:
        shapes = [tuple(shape) if shape is not None else None for shape in (wanted.get(key), found.get(key))]
        if shapes[0] != shapes[1]:
            raise UserError(f"{place} does not fit: expected {key} of shape {shapes[0]}, found {shapes[1]}")
