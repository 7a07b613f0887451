"""Files that onnxruntime runs with the same detections as torch; each export takes seconds, so there are few."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from smnas_optuna.detector.inference_graph import InferenceGraph
from smnas_optuna.detector.onnx_model import Agreement, agree, distances, export_onnx
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.detector import Detector
from tests.detector.test_inference_graph import CLASSES, KINDS, network

NAMES = [f"kind {number}" for number in range(CLASSES)]


def matrix(outputs: Sequence[Any]) -> Any:
    """Return what was found as rows of a box's four coordinates, its score and its label."""
    boxes, scores, labels = map(np.asarray, outputs)
    return np.column_stack([boxes, scores, labels])[labels >= 0]


@pytest.mark.parametrize(
    ("kind", "portrait"),
    [
        ("guided anchoring", False),
        ("ATSS", False),
        ("RTMDet", True),
        *(pytest.param(kind, True, marks=pytest.mark.long) for kind in ("one-stage", "two-stage", "FCOS", "GFL")),
    ],
)
def test_onnxruntime_detects_the_same_as_torch(kind: str, portrait: bool, tmp_path: Path) -> None:
    model = network(KINDS[kind])
    checkpoint = {"state_dict": model.state_dict(), "meta": {"dataset_meta": {"classes": NAMES}}}
    file = tmp_path / "new" / "model.onnx"
    agreement = export_onnx(Architecture.parse(KINDS[kind]), Detector(), checkpoint, file, portrait=portrait)
    assert agreement.others <= (2 if kind == "guided anchoring" else 0)  # whose scores are so alike that ranks change
    assert agreement.boxes > 100
    assert [each.name for each in file.parent.iterdir()] == ["model.onnx"]

    written = onnx.load(str(file))
    onnx.checker.check_model(written)
    metadata = {entry.key: entry.value for entry in written.metadata_props}
    assert metadata == {"architecture": KINDS[kind], "classes": json.dumps(NAMES)}
    # Of ONNX's own operators alone, so that any runtime may take it.
    assert {node.domain for node in written.graph.node} == {""}

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    shape = (1, 3, 160, 128) if portrait else (1, 3, 128, 160)
    image = np.random.default_rng(1).integers(0, 256, shape).astype(np.float32)
    size = np.array([shape[2] - 7, shape[3] - 20])
    found = matrix(session.run(None, {"image": image, "size": size}))
    with torch.no_grad():
        expected = matrix(InferenceGraph(model)(torch.from_numpy(image), torch.from_numpy(size)))
    assert len(found) == len(expected) == 100
    # Each with its nearest: two whose scores are all but equal may have changed places.
    pairs = linear_sum_assignment(np.abs(expected[:, None] - found).max(axis=2))
    np.testing.assert_allclose(found[pairs[1]], expected[pairs[0]], rtol=0, atol=1e-3)


def test_a_failed_export_leaves_no_file(tmp_path: Path) -> None:
    model = network(KINDS["without a neck"])
    checkpoint = {"state_dict": model.state_dict(), "meta": {"dataset_meta": {"classes": NAMES}}}
    folder = tmp_path / "models"
    folder.mkdir()
    with pytest.raises(UserError, match=r"^--output .*/models: cannot be written: Is a directory$"):
        export_onnx(Architecture.parse(KINDS["without a neck"]), Detector(), checkpoint, folder, portrait=False)
    assert list(tmp_path.rglob("*")) == [folder]


def test_the_error_of_another_detectors_weights_names_the_first_misfit(tmp_path: Path) -> None:
    weights = network(KINDS["one-stage"]).state_dict()
    checkpoint = {"state_dict": weights, "meta": {"dataset_meta": {"classes": [*NAMES, "one more"]}}}
    architecture = Architecture.parse(KINDS["one-stage"])
    expected = (
        r"--checkpoint does not fit: expected bbox_head\.retina_cls\.weight of shape \(36, 16, 3, 3\), found \(27, "
    )
    with pytest.raises(UserError, match=expected):
        export_onnx(architecture, Detector(), checkpoint, tmp_path / "model.onnx", portrait=False)
    gone = {**checkpoint, "state_dict": {}}
    with pytest.raises(UserError, match="found None"):
        export_onnx(architecture, Detector(), gone, tmp_path / "model.onnx", portrait=False)


def test_boxes_are_compared_by_label_whatever_their_order() -> None:
    boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0], [1.0, 1.0, 9.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
    scores, labels = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0, 1, -1])
    order = [1, 2, 0]
    assert distances((boxes, scores, labels), (boxes[order], scores[order], labels[order])).tolist() == [0] * 4
    moved = boxes + torch.tensor([0, 0, 0, 0.25])
    assert distances((boxes, scores, labels), (moved, scores, labels)).tolist() == [0.25] * 4
    relabelled = torch.tensor([0, 2, -1])
    assert distances((boxes, scores, labels), (boxes, scores, relabelled)).tolist() == [0, math.inf, 0, math.inf]
    assert distances((boxes, scores, labels), (boxes[:0], scores[:0], labels[:0])).tolist() == [math.inf] * 2
    assert agree(torch.tensor([0, 0.25, 0.5**12, math.inf])) == Agreement(4, 2, 0.5**12)
    assert agree(torch.empty(0)) == Agreement(0, 0, 0.0)
