"""What the trials of a search say about its constraints."""

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from smnas_optuna.recipe.settings import Constraints

_TEXTS = {
    "latency_ms": "{:.3g} ms",
    "params": "{:,.0f} parameters",
    "map": "mAP {:.3f}",
}


def limits_text(constraints: Constraints) -> str:
    """Return constraints in words, such as ``at most 15 ms and at least mAP 0.500``; empty without any."""
    words = {"max": "at most", "min": "at least"}
    limits = constraints.model_dump(exclude_none=True).items()
    return " and ".join(
        f"{words[kind]} {_TEXTS[metric].format(limit)}"
        for (kind, _, metric), limit in ((name.partition("_"), limit) for name, limit in limits)
    )


def is_feasible(trial: FrozenTrial) -> bool:
    """Return whether a completed trial violates no constraint."""
    return all(excess <= 0 for excess in trial.constraints.values())


def nearest_violation(trials: Sequence[FrozenTrial]) -> str | None:
    """Return the trial that violates its constraints least, in words; None if one keeps to them, or none has any.

    Args:
        trials: All trials of a study.
    """
    if any(trial.state == TrialState.COMPLETE and is_feasible(trial) for trial in trials):
        return None
    violating = [trial for trial in trials if trial.constraints and not is_feasible(trial)]
    if not violating:
        return None
    nearest = min(violating, key=lambda trial: (max(trial.constraints.values()), trial.number))
    known = {**nearest.user_attrs}
    # Of a detector that was not trained, the time before training is known.
    known.setdefault("latency_ms", known.get("untrained_latency_ms"))
    metrics = [name.partition("_")[2] for name, excess in nearest.constraints.items() if excess > 0]
    found = " and ".join(_TEXTS[metric].format(known[metric]) for metric in metrics)
    return f"trial {nearest.number} is nearest to the constraints, with {found}: {known['architecture']}"
