"""Exports a trained detector to ONNX, and checks that onnxruntime detects the same as torch."""

import contextlib
import io
import json
import math
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from torch import Tensor

from smnas_optuna.detector.flops import pad
from smnas_optuna.detector.inference_graph import InferenceGraph
from smnas_optuna.detector.weights import check_shapes
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture, InputSize
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.model_config import model_config

# Largest difference, of coordinates in pixels and of scores, with which two boxes are the same.
_TOLERANCE = 1e-3
# Largest share of boxes that may differ: if scores are almost equal, rounding decides which boxes are kept.
_MAX_DIFFERENT = 0.02
_OPSET = 18
# Sizes, in pixels, of the structures in the random images that are compared.
_STRUCTURES = (1, 8, 32)


@dataclass(frozen=True)
class Agreement:
    """How far the detections of two graphs agree.

    Args:
        boxes: Number of boxes that either graph has found.
        others: Number of these boxes for which the other graph has no box that is the same.
        difference: Largest difference between boxes that are the same, in pixels or scores.
    """

    boxes: int
    others: int
    difference: float


def export_onnx(
    architecture: Architecture, detector: Detector, checkpoint: dict[str, Any], path: Path, *, portrait: bool
) -> Agreement:
    """Export the inference of one image to an ONNX file; see ``InferenceGraph`` for its inputs and outputs.

    The file's metadata contain the architecture and, as a JSON list, the classes in the order of their labels.

    Args:
        architecture: The architecture; its input size, padded as the detector pads it, is the size of the file's input.
        detector: Settings that the checkpoint's detector was built with.
        checkpoint: A checkpoint of MMEngine, with trained weights and the classes in its ``meta``.
        path: Path of the file to write.
        portrait: Exchange width and height of the input.

    Raises:
        UserError: A package is not installed, the weights do not fit, an operation cannot be expressed in ONNX, or the
            file cannot be written.
        RuntimeError: onnxruntime detects something else than torch.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--format onnx: {error}; expected it to be installed, with the extra 'onnx'") from None
    classes = checkpoint["meta"]["dataset_meta"]["classes"]
    config = model_config(architecture, classes=len(classes), detector=detector)
    graph = InferenceGraph(_trained(config, checkpoint["state_dict"]))
    images = _images(architecture, config["data_preprocessor"]["pad_size_divisor"], portrait=portrait)
    try:
        # The exporter prints each step, and warns about code of torch itself.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                images[0],
                dynamo=True,
                opset_version=_OPSET,
                input_names=["image", "size"],
                output_names=["boxes", "scores", "labels"],
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise UserError(
            f"--format onnx: torch {torch.__version__} cannot express {architecture} in ONNX, expected torch 2.14 or "
            f"newer and no operation that ONNX lacks: {reason}"
        ) from None
    assert program is not None
    program.model.metadata_props.update({"architecture": str(architecture), "classes": json.dumps(list(classes))})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written to a temporary folder and renamed, so that no unfinished file is left.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="unfinished-") as unfinished:
            file = Path(unfinished) / path.name
            program.save(str(file))
            session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            agreement = agree(torch.cat([_compare(graph, session, *image) for image in images]))
            if agreement.others > _MAX_DIFFERENT * agreement.boxes:
                raise RuntimeError(
                    f"{agreement.others} of {agreement.boxes} boxes differ between onnxruntime and torch"
                )
            os.replace(file, path)
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written: {error.strerror}") from None
    return agreement


def _trained(config: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    with DefaultScope.overwrite_default_scope("mmdet"):
        model: Any = MODELS.build(ConfigDict(config))
    expected, found = ({key: tensor.shape for key, tensor in state.items()} for state in (model.state_dict(), weights))
    check_shapes("--checkpoint", expected, found, [*expected, *found])
    model.load_state_dict(weights)
    return model


def _images(architecture: Architecture, multiple: int, *, portrait: bool) -> list[tuple[Tensor, Tensor]]:
    """Return images of random structures, in which a detector may find something, that cover a part of the canvas.

    They repeat nowhere, since rounding would decide between equal scores.
    """
    covered = architecture.input_size
    if portrait:
        covered = InputSize(covered.height, covered.width)
    canvas = pad(covered, multiple)
    padded = [canvas.height, canvas.width]
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([covered.height - 1, covered.width - 1])
    images = []
    for side in _STRUCTURES:
        coarse = torch.rand(1, 3, *(math.ceil(each / side) + 1 for each in padded), generator=generator)
        image = F.interpolate(coarse, padded, mode="bilinear") + 0.1 * torch.rand(1, 3, *padded, generator=generator)
        images.append(((image / 1.1 * 256).floor(), size))
    return images


def _compare(graph: InferenceGraph, session: Any, image: Tensor, size: Tensor) -> Tensor:
    """Return the distances, see :func:`distances`, of the detections of onnxruntime and torch in an image."""
    with torch.no_grad():
        expected = graph(image, size)
    found = session.run(None, {"image": image.numpy(), "size": size.numpy()})
    return distances(expected, [torch.from_numpy(output) for output in found])


def distances(some: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Return the distance of each box of two graphs to the nearest box, with the same label, of the other graph.

    The distance is the largest difference of coordinates, in pixels, or scores.

    Args:
        some: Boxes, scores and labels of one graph, in any order; rows with the label -1 are empty.
        others: Boxes, scores and labels of the other graph.

    Returns:
        Distances, shape (number of boxes of both graphs,); infinite if the other graph has no box with that label.
    """
    (rows, labels), (other_rows, other_labels) = (
        (torch.cat([boxes, scores[:, None]], dim=1)[labels >= 0], labels[labels >= 0])
        for boxes, scores, labels in (some, others)
    )
    apart = torch.cdist(rows, other_rows, p=math.inf).where(labels[:, None] == other_labels, math.inf)
    apart = F.pad(apart, (0, 1, 0, 1), value=math.inf)  # in case that one graph has found nothing
    return torch.cat([apart.amin(1)[:-1], apart.amin(0)[:-1]])


def agree(distances: Tensor) -> Agreement:
    """Return how far the detections of two graphs agree, from the distances of their boxes."""
    same = distances <= _TOLERANCE
    difference = float(distances[same].max()) if same.any() else 0.0
    return Agreement(len(distances), int((~same).sum()), difference)
