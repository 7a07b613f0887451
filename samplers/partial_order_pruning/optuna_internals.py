"""All that this sampler uses of Optuna's private API; checked with Optuna 5.0.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial


def set_system_attr(study: Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Store a system attribute of a running trial, as Optuna's own samplers do; there is no public function for it."""
    study._storage.set_trial_system_attr(trial._trial_id, key, value)


def fixed_params(trial: FrozenTrial) -> Mapping[str, Any]:
    """Return the parameters that ``study.enqueue_trial()`` has fixed for a trial."""
    return trial.system_attrs.get("fixed_params") or {}
