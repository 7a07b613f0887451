"""Average precisions that a data set is scored with, as configs of MMDetection's metrics. Does not import torch."""

from collections.abc import Mapping
from typing import Any, Final

from smnas_optuna.data.datasets import CheckedDataset

# Main metric of a final training: the name that MMDetection gives it, and the name that is printed.
FINAL_PRECISIONS: Final = {"coco/bbox_mAP": "mAP", "pascal_voc/mAP": "Pascal VOC mAP"}

_COCO: Final = {
    "map": "coco/bbox_mAP",
    "map_50": "coco/bbox_mAP_50",
    "map_75": "coco/bbox_mAP_75",
    "map_small": "coco/bbox_mAP_s",
    "map_medium": "coco/bbox_mAP_m",
    "map_large": "coco/bbox_mAP_l",
}
_VOC_AT_50 = "pascal_voc/mAP"
_VOC_MODES = {"voc_11points": "11points", "voc_area": "area"}


def search_metrics(dataset: CheckedDataset) -> list[dict[str, Any]]:
    """Return the configs of the metrics that a search measures: COCO's, and for Pascal VOC data VOC's as well."""
    return [_coco_metric(dataset), *([_voc_metric(dataset)] if dataset.scoring in _VOC_MODES else [])]


def final_metric(dataset: CheckedDataset) -> tuple[dict[str, Any], str]:
    """Return the config of the data set's main metric, and the name of its mean average precision."""
    if dataset.scoring in _VOC_MODES:
        return _voc_metric(dataset), _VOC_AT_50
    return _coco_metric(dataset), _COCO["map"]


def precisions(measured: Mapping[str, Any], dataset: CheckedDataset) -> dict[str, float]:
    """Return mean average precisions by the names of this package, such as ``map`` and ``map_50``.

    On Pascal VOC data ``map_50`` is VOC's metric, which ignores difficult objects; all others are COCO's.

    Args:
        measured: Results of the metrics of :func:`search_metrics`, by MMDetection's names.
        dataset: The data set.
    """
    names = {**_COCO, "map_50": _VOC_AT_50} if dataset.scoring in _VOC_MODES else _COCO
    # CocoMetric returns no results for a detector without any detections; its precision is 0.
    return {ours: float(measured.get(theirs, 0.0)) for ours, theirs in names.items()}


def _coco_metric(dataset: CheckedDataset) -> dict[str, Any]:
    return {"type": "CocoMetric", "ann_file": str(dataset.val.annotations), "metric": "bbox"}


def _voc_metric(dataset: CheckedDataset) -> dict[str, Any]:
    return {"type": "VOCMetric", "metric": "mAP", "eval_mode": _VOC_MODES[dataset.scoring]}
