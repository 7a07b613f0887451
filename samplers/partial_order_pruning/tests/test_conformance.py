from collections.abc import Callable
from typing import Any

import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from .. import PartialOrderPruningSampler


def search_space(trial: Any) -> tuple[float, float]:
    return trial.suggest_float("x", -10, 10), trial.suggest_float("y", -10, 10)


def order(architecture: tuple[float, float]) -> tuple[None, tuple[float, float]]:
    return None, architecture


class TestOptunaConformance(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture(
        # Each two of the choices, in as few samplers as possible.
        params=[
            {"selection": "ehvi", "n_startup_trials": 10},
            {"selection": "ehvi", "n_startup_trials": 2, "search_space": search_space},
            {"selection": "ehvi", "n_startup_trials": 10, "search_space": search_space, "order": order},
            {"selection": "evolution", "n_startup_trials": 2},
            {"selection": "evolution", "n_startup_trials": 10, "search_space": search_space},
            {"selection": "evolution", "n_startup_trials": 2, "search_space": search_space, "order": order},
        ],
        ids=lambda options: "-".join(name if callable(value) else str(value) for name, value in options.items()),
    )
    def sampler(self, request: pytest.FixtureRequest) -> Callable[[], BaseSampler]:
        return lambda: PartialOrderPruningSampler(seed=0, **request.param)
