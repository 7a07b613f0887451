"""Estimated training memory compared with measurements.

1. For training steps on this machine's device: a GPU's ``max_memory_allocated``, or the observed allocations of the
   CPU's allocator. Small and full-size detectors, with two sizes and batch sizes, all in float32.
2. For MMDetection's models: the ``Training Memory`` that it publishes, for two images of 1333x800 per GPU.

    python -m benchmarks.training_memory [--only TEXT]
"""

import argparse
import itertools
import statistics
from collections.abc import Iterator
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import yaml

from smnas_optuna.detector.counting import build_on_meta, published_model
from smnas_optuna.detector.memory import training_memory
from smnas_optuna.parts.architecture import Architecture, InputSize
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.model_config import model_config
from tests.detector.training_step import measured_memory

DETECTORS = (
    "ResNet18(w=16) FPN(P2-P4,c=16) RPN 2FC",
    "ResNet18(w=16) RetinaNet",
    "MobileNetV2(w=16) FPN(P1-P5,c=32) GA-RPN Cascade(n=2)",
    "ResNet18 FPN(P2-P6,c=128) RetinaNet",
    "ResNet18 RPN 2FC",
    "ResNet50 FPN(P1-P5,c=256) RPN 2FC",
    "ResNet50 FPN(P1-P5,c=128) GA-RPN Cascade(n=3)",
    "ResNet50 GA-RPN 2FC",
    "MobileNetV2 FPN(P2-P5,c=128) RPN Cascade(n=3)",
    "MobileNetV2 FPN(P2-P6,c=128) RetinaNet",
    "basicblock_56_12-11111-211-1112 FPN(P1-P5,c=128) RPN Cascade(n=3)",
    "Xbottleneck_32_21-21-11-21 FPN(P2-P5,c=128) RetinaNet",
)
NORMS = {"BN": Detector(), "GN+WS": Detector(norm="GN", weight_standardization=True)}
SIZES = ("256x192", "512x384")
BATCHES = (1, 2)
BOXES = 12
CLASSES = 20
# Folders of MMDetection's configs with models that have heads of this package.
FAMILIES = ("faster_rcnn", "cascade_rcnn", "retinanet", "guided_anchoring", "mask_rcnn", "fsaf")
PUBLISHED_BATCH = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="measure only detectors whose text contains this")
    only = parser.parse_args().only
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ratios = []
    print(
        f"{'detector on ' + device:72} {'norm':6} {'size':8} {'batch':>5} {'estimate':>9} {'measured':>9} {'ratio':>6}"
    )
    for text, (norm, detector), size in itertools.product(DETECTORS, NORMS.items(), SIZES):
        if only not in f"{size} {text} {norm}":
            continue
        box = InputSize.parse(size)
        config = model_config(Architecture.parse(f"{size} {text}"), classes=CLASSES, detector=detector)
        model = build_on_meta(config)
        for batch in BATCHES:
            estimate = training_memory(model, box, batch, boxes=BOXES, device=device)
            measured = measured_memory(config, box, batch, BOXES, device)
            ratios.append(estimate / measured)
            mebibytes = f"{estimate / 2**20:9.1f} {measured / 2**20:9.1f}"
            print(f"{text:72} {norm:6} {size:8} {batch:5} {mebibytes} {ratios[-1]:6.3f}", flush=True)
    if ratios:
        median = statistics.median(ratios)
        print(f"{len(ratios)} of them: ratios from {min(ratios):.3f} to {max(ratios):.3f}, median {median:.3f}")
    print(f"\n{'published by MMDetection, two images of 1333x800':72} {'estimate':>9} {'GiB':>6} {'ratio':>6}")
    for config_path, gibibytes in _published():
        if only in config_path:
            model = build_on_meta(published_model(PurePosixPath(config_path)))
            estimated = training_memory(model, InputSize(1333, 800), PUBLISHED_BATCH) / 2**30
            print(f"{config_path:72} {estimated:9.2f} {gibibytes:6.2f} {estimated / gibibytes:6.3f}", flush=True)


def _published() -> Iterator[tuple[str, float]]:
    """Yield the config and published memory, in GiB, of models with a 1x schedule and no special modules."""
    configs = Path(str(resources.files("mmdet"))) / ".mim" / "configs"
    for family in FAMILIES:
        models: list[dict[str, Any]] = yaml.safe_load((configs / family / "metafile.yml").read_text())["Models"]
        for model in models:
            path = model["Config"].removeprefix("configs/")
            memory = model.get("Metadata", {}).get("Training Memory (GB)")
            special = ("caffe", "amp", "dconv", "mask-rcnn", "ga-rpn", "ga-retinanet", "1xb8")
            is_plain = family == "mask_rcnn" or not any(part in PurePosixPath(path).name for part in special)
            if memory and path.endswith("fpn_1x_coco.py") and "caffe" not in path and is_plain:
                yield path, memory


if __name__ == "__main__":
    main()
