"""Number of operator calls, and of waits for the GPU, per training step and per timed image.

    python -m benchmarks.operations

A small network on a fast GPU takes the time of these calls and waits, not of its arithmetic. They are counted on the
CPU, which calls the same operators, with a small input, since their number hardly depends on its size.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from benchmarks.detectors import CLASSES, build, one_image
from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.detector.deployment import prepare_for_deployment
from smnas_optuna.detector.zoo import DETECTORS
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.model_config import model_config
from smnas_optuna.recipe.settings import Device, DigitsDataset, Training
from smnas_optuna.training.job import Job
from smnas_optuna.training.runner_config import runner_config
from tests.detector.counted_calls import CountedCalls

_SIZE = "320x256"
_DETECTORS = {
    "Faster R-CNN R50": "ResNet50 FPN(P1-P5,c=256) RPN 2FC",
    "RetinaNet R50": "ResNet50 FPN(P2-P6,c=256) RetinaNet",
    "GA-RPN cascade": "ResNet50 FPN(P2-P5,c=256) GA-RPN Cascade(n=3)",
    "E2": str(DETECTORS["E2"].architecture).partition(" ")[2],
}
_NORMS = {"BN": Detector(), "GN+WS": Detector(norm="GN", weight_standardization=True)}
# Iterations of the epoch; none of the counted ones is the last, which does additional work.
_WARMUP, _COUNTED = 1, 2


class _CountIterations(Hook):  # type: ignore[misc]  # mmengine is untyped
    """Counts the calls and waits of each training iteration, including those of other hooks."""

    def __init__(self) -> None:
        self.counted: list[CountedCalls] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.counted.append(CountedCalls())
        self.counted[-1].__enter__()  # type: ignore[no-untyped-call]  # torch's is untyped

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        self.counted[-1].__exit__(None, None, None)  # type: ignore[no-untyped-call]  # as above


def main() -> None:
    torch.manual_seed(0)
    MMLogger.get_current_instance().setLevel("WARNING")  # otherwise the initialisation of each layer is logged
    print(f"{'':18} {'':6} {'training step':>27}   {'timed image':>27}")
    print(f"{'':18} {'':6} {'operators':>13} {'waits':>13}   {'operators':>13} {'waits':>13}")
    for name, text in _DETECTORS.items():
        for norm, detector in _NORMS.items():
            architecture = Architecture.parse(f"{_SIZE} {text}")
            step, image = _training_step(architecture, detector), _timed_image(architecture, detector)
            counts = [step.calls.total(), step.synchronizations, image.calls.total(), image.synchronizations]
            cells = [f"{count:13}" for count in counts]
            print(f"{name:18} {norm:6} {' '.join(cells[:2])}   {' '.join(cells[2:])}", flush=True)


def _training_step(architecture: Architecture, detector: Detector) -> CountedCalls:
    count = _WARMUP + _COUNTED + 1
    dataset = open_dataset(DigitsDataset(kind="digits", train_images=2 * count, val_images=4, width=320, height=256))
    training = Training(epochs=1, batch_size=2, lr=0.001, clip_gradients=35, weights="none", loader_workers=0)
    counting = _CountIterations()
    with tempfile.TemporaryDirectory() as folder:
        job = Job(architecture, dataset, detector, training, Device(kind="cpu"), Path(folder), kind="cpu")
        runner = Runner.from_cfg(runner_config(job))
        runner.register_hook(counting, priority="LOWEST")
        runner.train()
    return counting.counted[_WARMUP]


def _timed_image(architecture: Architecture, detector: Detector) -> CountedCalls:
    config = model_config(architecture, classes=CLASSES, detector=detector)
    network = prepare_for_deployment(build(config, torch.device("cpu")))
    sample = one_image(architecture.input_size, 0)
    with torch.inference_mode():
        network.test_step(sample)
        counted = CountedCalls()
        with counted:
            network.test_step(sample)
    return counted


if __name__ == "__main__":
    main()
