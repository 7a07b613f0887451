"""A trained detector that is used: from a folder with its config and weights to detections in an image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import mmcv
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import init_default_scope
from numpy.typing import NDArray

from smnas_optuna.detector import layers  # noqa: F401  # registers our layers, and provides mmcv's operators to mmdet
from smnas_optuna.errors import UserError
from smnas_optuna.training.checkpoint import load_trained
from smnas_optuna.training.picture import LabelledBox

CONFIG: Final = "config.py"
WEIGHTS: Final = "weights.pth"
ONNX: Final = "detector.onnx"


class TrainedDetector:
    """A trained detector; call it with an image to get the detections in it.

    Args:
        folder: Folder with ``config.py`` and ``weights.pth``, such as the ``best/`` of a search.
        device: Where it runs, such as ``cuda:1``; None for the first GPU, or a CPU where there is none.

    Raises:
        UserError: The folder lacks one of the files, they cannot be read, or there is no such device.
    """

    def __init__(self, folder: str | Path, device: str | None = None) -> None:
        self._model = init_trained(Path(folder), _usable(device or ("cuda" if torch.cuda.is_available() else "cpu")))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        return tuple(self._model.dataset_meta["classes"])

    def __call__(self, image: str | Path | NDArray[np.uint8], threshold: float = 0.5) -> list[LabelledBox]:
        """Return the detections in an image, the highest score first.

        Args:
            image: File, or an RGB image of shape ``height x width x 3``.
            threshold: Lowest score of a detection that is returned, 0 to 1.

        Raises:
            UserError: The file cannot be read as an image.
        """
        from mmdet.apis import inference_detector

        pixels = image if isinstance(image, np.ndarray) else read_image(Path(image))
        # MMDetection expects the order in which OpenCV reads channels.
        found = inference_detector(self._model, np.ascontiguousarray(pixels[..., ::-1]))
        return labelled_boxes(found.pred_instances.cpu(), self.classes, threshold)


def read_image(file: Path) -> NDArray[np.uint8]:
    """Return an image as MMDetection loads it, with its rotation applied, but as RGB; raises UserError."""
    try:
        image = mmcv.imread(str(file), channel_order="rgb")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or 'no such file'}") from None
    except Exception:  # OpenCV raises errors of its own
        image = None
    if image is None:
        raise UserError(f"{file}: cannot be read as an image")
    return np.asarray(image, dtype=np.uint8)


def _usable(device: str) -> str:
    """Return the name of a device that torch can use here; raises UserError for another."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"device {device!r}: cannot be used: {reason}") from None
    return device


def init_trained(folder: Path, device: str) -> Any:
    """Return MMDetection's detector of a folder, in evaluation mode; raises UserError, see TrainedDetector."""
    register_all_modules()
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: has no {name}; expected a folder such as the best/ of a search")
    trained = load_trained(str(folder / WEIGHTS), folder / WEIGHTS)
    try:
        config = Config.fromfile(folder / CONFIG, format_python_code=False)
        init_default_scope(config.default_scope)
        model = MODELS.build(config.model)
        model.load_state_dict(trained["state_dict"])
    except Exception as error:  # a config is a program, which may raise errors of any type
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{folder / CONFIG}: is no config of the detector in {WEIGHTS}: {reason}") from None
    model.dataset_meta = trained["meta"]["dataset_meta"]
    model.cfg = config  # which MMDetection's functions for inference read
    return model.to(device).eval()


def labelled_boxes(instances: Any, classes: Sequence[str], threshold: float) -> list[LabelledBox]:
    """Return MMDetection's predicted instances as boxes, the highest score first.

    Args:
        instances: Instances with ``bboxes``, ``labels`` and ``scores``, on the CPU.
        classes: Names of the classes.
        threshold: Lowest score of a box that is returned.
    """
    found = zip(instances.bboxes.tolist(), instances.labels.tolist(), instances.scores.tolist(), strict=True)
    boxes = [
        LabelledBox(tuple(corners), label, classes[label], score)
        for corners, label, score in found
        if score >= threshold
    ]
    return sorted(boxes, key=lambda box: -(box.score or 0.0))
