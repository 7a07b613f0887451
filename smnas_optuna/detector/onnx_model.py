"""A trained detector as an ONNX file, compared with itself in torch before it is given out."""

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

# How far boxes, in pixels, and scores may be apart and still be the same.
_SAME = 1e-3
# Share of boxes that may be others: of two like scores, rounding decides which one is over a limit of their number.
_OTHERS = 0.02
_OPSET = 18
# Sizes, in pixels, of the clouds in the images to compare with.
_CLOUDS = (1, 8, 32)


@dataclass(frozen=True)
class Agreement:
    """How far what two graphs find is the same.

    Args:
        boxes: That any of the two has found.
        others: Those of them to which the other one has none that is so near.
        difference: The largest of the rest, in pixels and scores.
    """

    boxes: int
    others: int
    difference: float


def export_onnx(
    architecture: Architecture, detector: Detector, checkpoint: dict[str, Any], path: Path, *, portrait: bool
) -> Agreement:
    """Write a detector's inference of one image as an ONNX file; see ``InferenceGraph`` for what goes in and comes out.

    The file's metadata tell the architecture and, as a JSON list, the classes in the order of their labels.

    Args:
        architecture: Its input size, padded to what the detector needs, is the size of the image that goes in.
        detector: What the checkpoint's detectors have in common.
        checkpoint: Trained weights of MMEngine's form, with the classes in their ``meta``.
        path: Of the file.
        portrait: Width and height are exchanged.

    Raises:
        UserError: A package is not installed, the weights do not fit, an operation cannot be expressed in ONNX, or the
            file cannot be written.
        RuntimeError: onnxruntime finds anything else than torch.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--format onnx: {error}; expected it installed, by the package's extra 'onnx'") from None
    classes = checkpoint["meta"]["dataset_meta"]["classes"]
    config = model_config(architecture, classes=len(classes), detector=detector)
    graph = InferenceGraph(_trained(config, checkpoint["state_dict"]))
    images = _images(architecture, config["data_preprocessor"]["pad_size_divisor"], portrait=portrait)
    try:
        # It tells each of its steps, and warns of torch's own ways.
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
        told = str(error.__cause__ or error).strip().partition("\n")[0]
        raise UserError(
            f"--format onnx: torch {torch.__version__} cannot express {architecture} in ONNX, expected torch 2.14 or "
            f"newer and no operation that ONNX lacks: {told}"
        ) from None
    assert program is not None
    program.model.metadata_props.update({"architecture": str(architecture), "classes": json.dumps(list(classes))})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside it, to be renamed into place; whatever ends this, nothing unfinished stays.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="unfinished-") as unfinished:
            file = Path(unfinished) / path.name
            program.save(str(file))
            session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            agreement = agree(torch.cat([_compare(graph, session, *image) for image in images]))
            if agreement.others > _OTHERS * agreement.boxes:
                raise RuntimeError(
                    f"onnxruntime finds {agreement.others} of {agreement.boxes} boxes elsewhere than torch does"
                )
            os.replace(file, path)
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written: {error.strerror}") from None
    return agreement


def _trained(config: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    with DefaultScope.overwrite_default_scope("mmdet"):
        model: Any = MODELS.build(ConfigDict(config))
    wanted, found = ({key: tensor.shape for key, tensor in state.items()} for state in (model.state_dict(), weights))
    check_shapes("--checkpoint", wanted, found, [*wanted, *found])
    model.load_state_dict(weights)
    return model


def _images(architecture: Architecture, multiple: int, *, portrait: bool) -> list[tuple[Tensor, Tensor]]:
    """Return clouds of several sizes, in which a detector may find something, on a part of the canvas.

    No two places are alike: of equal scores, rounding decides which one counts.
    """
    covered = architecture.input_size
    if portrait:
        covered = InputSize(covered.height, covered.width)
    canvas = pad(covered, multiple)
    padded = [canvas.height, canvas.width]
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([covered.height - 1, covered.width - 1])
    images = []
    for cloud in _CLOUDS:
        coarse = torch.rand(1, 3, *(math.ceil(each / cloud) + 1 for each in padded), generator=generator)
        image = F.interpolate(coarse, padded, mode="bilinear") + 0.1 * torch.rand(1, 3, *padded, generator=generator)
        images.append(((image / 1.1 * 256).floor(), size))
    return images


def _compare(graph: InferenceGraph, session: Any, image: Tensor, size: Tensor) -> Tensor:
    """Return the distances of what onnxruntime and torch find in an image."""
    with torch.no_grad():
        expected = graph(image, size)
    found = session.run(None, {"image": image.numpy(), "size": size.numpy()})
    return distances(expected, [torch.from_numpy(output) for output in found])


def distances(some: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Return for each box of two graphs how far the nearest of the other graph is, in pixels and scores.

    Args:
        some: Boxes, scores and labels of one graph; those with the label -1 are none.
        others: The same of the other. The order does not count.

    Returns:
        Infinite where the other has no box of that label.
    """
    (rows, labels), (other_rows, other_labels) = (
        (torch.cat([boxes, scores[:, None]], dim=1)[labels >= 0], labels[labels >= 0])
        for boxes, scores, labels in (some, others)
    )
    apart = torch.cdist(rows, other_rows, p=math.inf).where(labels[:, None] == other_labels, math.inf)
    apart = F.pad(apart, (0, 1, 0, 1), value=math.inf)  # where one has found nothing
    return torch.cat([apart.amin(1)[:-1], apart.amin(0)[:-1]])


def agree(distances: Tensor) -> Agreement:
    """Return how far what two graphs find is the same, by their boxes' distances."""
    same = distances <= _SAME
    difference = float(distances[same].max()) if same.any() else 0.0
    return Agreement(len(distances), int((~same).sum()), difference)
