import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from smnas_optuna.samplers import PartialOrderPruningSampler, create_sampler
from smnas_optuna.search_space.structural import StructuralSpace, order


@pytest.mark.parametrize("name", ["pop", "nsga2", "tpe", "random"])
def test_every_sampler_proposes_structural_architectures(name: str) -> None:
    space = StructuralSpace()
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=create_sampler(name, 0, space.suggest, order)
    )
    found = set()

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        architecture = space.suggest(trial)
        found.add(architecture)
        _, vector = order(architecture)
        return float(sum(vector[:2])), float(vector[2])

    study.optimize(objective, n_trials=25)
    assert isinstance(study.sampler, PartialOrderPruningSampler) == (name == "pop")
    if name == "pop":
        assert len(found) == 25


def test_the_example_of_the_package_runs() -> None:
    example = Path(__file__).parents[2] / "samplers" / "partial_order_pruning" / "example.py"
    ended = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "order of accuracy violated by 0 of" in ended.stdout
