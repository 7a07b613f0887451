"""How much faster than its untrained detector a trained one may be, learned from a study's own pairs of times.

Inference time depends on what a detector has learned, since what it finds has to be post-processed: in searches the
untrained detector took 0.85 to 1.6 times as long as the trained one.
"""

import math
from collections.abc import Iterable, Sequence

from optuna.trial import FrozenTrial, TrialState

UNDERCUT_PROBABILITY = 0.05
"""Of trained times, the share that may be below their :func:`optimistic_latency`."""
_FACTOR_BEFORE = 0.5
"""Trained by untrained time, at least, until there are enough pairs. The least that was seen in searches is 0.63."""


def optimistic_latency(untrained_ms: float, pairs: Sequence[tuple[float, float]]) -> float:
    """Return a time that a detector will hardly undercut once it is trained.

    With 19 pairs or more it is the untrained time by the lowest, with 39 by the second lowest ratio of trained to
    untrained time that was seen, and so on: the lower bound of a one-sided distribution-free prediction interval (Wilks
    1941; Vovk et al. 2005). If the detector's ratio is as likely to be at any place in the order of all ratios, its
    trained time is below with a probability of ``UNDERCUT_PROBABILITY`` at most, whatever the ratios' distribution.
    Searches propose other architectures with time, for which this holds approximately.

    With fewer pairs it is half of the untrained time, or by the lowest ratio if that is less. It is never more than
    the untrained time.

    Args:
        untrained_ms: Inference time of the untrained detector in milliseconds.
        pairs: Untrained and trained times in milliseconds of detectors that were timed on the same device.
    """
    ratios = sorted(trained / untrained for untrained, trained in pairs)
    rank = math.floor(UNDERCUT_PROBABILITY * (len(ratios) + 1))
    factor = min(1.0, ratios[rank - 1]) if rank else min([_FACTOR_BEFORE, *ratios])
    return untrained_ms * factor


def timing_pairs(trials: Iterable[FrozenTrial], device: str) -> list[tuple[float, float]]:
    """Return the untrained and trained times of completed trials.

    Args:
        trials: Of a study. Those that were resumed are left out: their untrained detector was timed in another trial.
        device: Of the times, as the trials' attribute ``device`` has it.
    """
    return [
        (trial.user_attrs["untrained_latency_ms"], trial.user_attrs["latency_ms"])
        for trial in trials
        if trial.state == TrialState.COMPLETE
        and trial.user_attrs.get("device") == device
        and trial.user_attrs.keys() >= {"untrained_latency_ms", "latency_ms"}
        and "resumed_after_epochs" not in trial.user_attrs
    ]
