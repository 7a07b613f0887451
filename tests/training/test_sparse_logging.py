"""Losses are read from the device only when they are logged."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.runner import Runner

from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.training import sparse_logging
from smnas_optuna.training.job import Job
from smnas_optuna.training.runner_config import runner_config


@pytest.fixture
def runner(tiny_recipe: Path, tmp_path: Path) -> Runner:
    """A training of two epochs of eight iterations, with gradient clipping."""
    recipe = load_recipe(str(tiny_recipe), ["structural.training.epochs=2", "structural.training.batch_size=1"])
    stage, dataset = recipe.structural, open_dataset(recipe.dataset)
    architecture = Architecture.parse("64x48 ResNet18(w=8) RetinaNet")
    job = Job(architecture, dataset, stage.detector, stage.training, recipe.device, tmp_path / "trial", kind="cpu")
    return Runner.from_cfg(runner_config(replace(job, folder=tmp_path / "again")))


def test_losses_are_read_only_at_iterations_that_are_logged(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_logging, "LOG_INTERVAL", 3)
    read: list[int] = []
    item = torch.Tensor.item

    def note(tensor: torch.Tensor) -> Any:
        if tensor.requires_grad:
            read.append(runner.iter)
        return item(tensor)

    monkeypatch.setattr(torch.Tensor, "item", note)
    runner.train()
    # The third, the sixth and the last of each epoch.
    assert sorted(set(read)) == [2, 5, 7, 10, 13, 15]
    assert len(runner.message_hub.get_scalar("train/loss").data[0]) == 6


def test_gradients_are_clipped_without_reading_their_norm(runner: Runner) -> None:
    sgd = {"type": "SGD", "lr": 1.0}
    clip = {"max_norm": 1.0}
    wrapper = runner.build_optim_wrapper({"type": "SparseOptimWrapper", "optimizer": sgd, "clip_grad": clip})
    for parameter in runner.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    wrapper._clip_grad()
    gradients = torch.cat([each.grad.flatten() for each in runner.model.parameters() if each.grad is not None])
    assert gradients.norm() == pytest.approx(1.0, abs=1e-3)
    assert "train/grad_norm" not in runner.message_hub.log_scalars
