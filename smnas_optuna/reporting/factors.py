"""Factors: properties of searched backbones, with their FLOPs and mAP (SM-NAS, Figures 5 and 8)."""

from typing import Final

import numpy as np
import pandas as pd

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.searched import BackboneCode
from smnas_optuna.reporting.quantity import quantity_of
from smnas_optuna.reporting.study_results import StudyResults

# The factors of Figure 5 in the order of its caption, with descriptions.
FACTORS: Final = {
    "depth": "number of blocks",
    "width": "base channels",
    "DC_1": "position of the first doubling of channels",
    "DC_2": "position of the second doubling",
    "DC_3": "position of the third doubling",
    "len_2": "share of the blocks in stage 2",
    "len_3": "share of the blocks in stage 3",
    "len_4": "share of the blocks in stage 4",
    "len_5": "share of the blocks in stage 5",
    "FLOPs": "multiply-adds",
    "mAP": "COCO metric",
}


def factors_frame(results: StudyResults) -> pd.DataFrame:
    """Return the factors of Figures 5 and 8, with a row per finished trial.

    Columns are ``number``, ``on_front`` and those of ``FACTORS``. Only blocks up to the last level that the neck or
    the heads use are counted, since a detector does not build the others.

    - ``depth``: number of blocks.
    - ``width``: base channels, before the first doubling.
    - ``DC_k``: position of the k-th doubling of channels: the index of its block, from 0, divided by ``depth``; NaN if
      there are fewer than k doublings.
    - ``len_s``: share of the blocks that are in stage s, which has stride ``2 ** s``. The four shares add up to 1, so
      some of them always correlate negatively.
    - ``FLOPs``: ``backbone_flops`` if that is an objective, otherwise ``flops`` of the whole detector.
    - ``mAP``: ``map`` of the trial; NaN if COCO's evaluation had no objects to measure.

    If a trial's backbone is not a searched one with a code, all of its factors are NaN.
    """
    flops = "backbone_flops" if "backbone_flops" in results.metrics else "flops"
    precision = quantity_of("map")
    rows = []
    for trial in results.finished.to_dict("records"):
        factors = _shape(trial["architecture"])
        if factors:
            mean_precision = np.nan if precision.is_missing(trial["map"]) else trial["map"]
            factors |= {"FLOPs": trial[flops], "mAP": mean_precision}
        rows.append({"number": trial["number"], "on_front": trial["on_front"], **factors})
    frame = pd.DataFrame(rows, columns=["number", "on_front", *FACTORS])
    return frame.astype({"number": int, "on_front": bool} | dict.fromkeys(FACTORS, float))


def _shape(text: object) -> dict[str, float]:
    """Return the factors that follow from a backbone's code; empty if the architecture has none."""
    try:
        architecture = Architecture.parse(str(text))
    except ValueError:
        return {}
    code = architecture.backbone
    if not isinstance(code, BackboneCode):
        return {}
    built = architecture.backbone_levels[-1]
    blocks = "".join(code.stages[:built])
    depth = len(blocks)
    doublings = [block for block, digit in enumerate(blocks) if digit == "2"]
    positions = {f"DC_{number}": block / depth for number, block in enumerate(doublings[:3], start=1)}
    lengths = {
        f"len_{stage}": len(digits) / depth if stage < built + 2 else 0.0 for stage, digits in enumerate(code.stages, 2)
    }
    return {"depth": depth, "width": code.base, **positions, **lengths}
