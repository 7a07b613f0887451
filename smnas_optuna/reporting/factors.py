"""Factors: traits of searched backbones, beside what they cost and how accurate they are (SM-NAS, Figures 5 and 8)."""

from typing import Final

import numpy as np
import pandas as pd

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.searched import BackboneCode
from smnas_optuna.reporting.quantity import quantity_of
from smnas_optuna.reporting.study_results import StudyResults

# The factors of Figure 5, in its caption's order, and what they are.
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
    """Return the factors of Figures 5 and 8, a row per finished trial.

    Columns: ``number``, ``on_front``, then those of ``FACTORS``. A detector builds the backbone up to the last
    level that its neck or its heads use; blocks of the code behind that are not counted.

    - ``depth``: number of blocks.
    - ``width``: base channels, those before the first doubling.
    - ``DC_k``: share of the blocks that come before the one with the k-th doubling, which is that block's index from 0
      divided by ``depth``; NaN where there are fewer doublings. Any after the third are not told.
    - ``len_s``: share of the blocks that are in stage s, which has stride ``2 ** s``. The four add up to 1, so some of
      them correlate negatively whatever was searched.
    - ``FLOPs``: ``backbone_flops`` where that is an objective, else ``flops`` of the whole detector.
    - ``mAP``: the ``map`` of the trial; NaN where COCO's evaluation found nothing to measure.

    A trial whose backbone is not a code has no factors: all of them are NaN.
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
    """Return what a backbone's code tells; nothing where the architecture has none."""
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
