"""Training that reads numbers from the GPU only when they are logged.

MMEngine reads every loss and the gradient's norm at every iteration. Each reading waits until the GPU has computed all
that it was given, and a small network then waits for the CPU at the next iteration. A loss in MMEngine's log is here
the mean of the last ten that were read, not of the last ten iterations.
"""

from typing import Any

import torch
from mmengine.hooks import RuntimeInfoHook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from mmengine.runner import Runner

from smnas_optuna.training.runners import LOG_INTERVAL


@HOOKS.register_module()
class SparseRuntimeInfoHook(RuntimeInfoHook):  # type: ignore[misc]  # mmengine is untyped
    """Reads the losses of the iterations that are logged: every 50th of an epoch, and its last."""

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Read the losses if this iteration is logged."""
        if self.every_n_inner_iters(batch_idx, LOG_INTERVAL) or self.end_of_epoch(runner.train_dataloader, batch_idx):
            super().after_train_iter(runner, batch_idx, data_batch, outputs)


class _SparseNorm:
    """Clips gradients without reading their norm."""

    optimizer: torch.optim.Optimizer
    clip_grad_kwargs: dict[str, Any]
    clip_func: Any

    def _clip_grad(self) -> None:
        groups = self.optimizer.param_groups
        learned = [each for group in groups for each in group["params"] if each.requires_grad and each.grad is not None]
        if learned:
            self.clip_func(learned, **self.clip_grad_kwargs)


@OPTIM_WRAPPERS.register_module()
class SparseOptimWrapper(_SparseNorm, OptimWrapper):  # type: ignore[misc]  # as above
    """OptimWrapper that logs no norm of the gradient."""


@OPTIM_WRAPPERS.register_module()
class SparseAmpOptimWrapper(_SparseNorm, AmpOptimWrapper):  # type: ignore[misc]  # as above
    """AmpOptimWrapper that logs no norm of the gradient."""
