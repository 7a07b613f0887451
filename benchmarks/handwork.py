"""One detector, trained by hand for as long as a search takes: what a search on a data folder has to beat.

The detector is trained as it was published, from the pre-trained weights that can be had, for the given minutes. One
epoch is trained first to know how many fit.

    python -m benchmarks.handwork FOLDER MINUTES [ARCHITECTURE]
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.detector import Detector
from smnas_optuna.recipe.recipe_file import folder_dataset
from smnas_optuna.recipe.settings import Device, Training
from smnas_optuna.study.budget import parse_duration
from smnas_optuna.training.job import AutomaticWeights, Job, Progress, Scores
from smnas_optuna.training.process import describe_machine, evaluate

_RTMDET_TINY = "320x256 CSPNeXt-tiny CSPNeXtPAFPN(P2-P4,c=96) RTMDet"
_BATCH = {"cpu": 4, "cuda": 16}


def main() -> None:
    data, minutes, *given = sys.argv[1:]
    started = time.perf_counter()
    architecture = Architecture.parse(given[0] if given else _RTMDET_TINY)
    dataset = open_dataset(folder_dataset(Path(data), []))
    weights = os.environ.get("SMNAS_WEIGHTS")
    with tempfile.TemporaryDirectory() as folder:
        kind = describe_machine(Path(folder) / "machine.log").kind

        def train(epochs: int) -> Scores:
            training = Training(epochs=epochs, batch_size=_BATCH[kind]).suited_to(architecture)
            job = Job(
                architecture,
                dataset,
                Detector(),
                training,
                Device(),
                Path(folder) / f"{epochs}",
                kind=kind,
                weights=AutomaticWeights(Path(weights) if weights else None),
            )
            for event in evaluate(job):
                if isinstance(event, Progress):
                    spent = time.perf_counter() - started
                    print(f"epoch {event.epoch}/{event.epochs}, loss {event.loss:.3f}, after {spent:.0f} s", flush=True)
            assert isinstance(event, Scores), event
            return event

        each = train(1).train_seconds
        epochs = int((parse_duration(f"{minutes}m") - (time.perf_counter() - started)) / each)
        scores = train(epochs)
    print(f"{architecture}: mAP {scores.metrics['map']:.3f}, {scores.latency_ms:.1f} ms, {epochs} epochs")
    print(f"{time.perf_counter() - started:.0f} s in all, with evaluation and timing")


if __name__ == "__main__":
    main()
