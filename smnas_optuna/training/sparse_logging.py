"""Hook and optimizer wrappers that read losses from the GPU only for the iterations that are logged.

MMEngine reads all losses and the norm of the gradient at every iteration. Each read waits for the GPU to finish, which
slows down small networks, for which the GPU then waits for the CPU. With these classes, a loss in MMEngine's log is the
mean of the last ten that were read, not of the last ten iterations.
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
    """Reads the losses only at the iterations that are logged: every 50th of an epoch, and the last."""

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
        trained = [each for group in groups for each in group["params"] if each.requires_grad and each.grad is not None]
        if trained:
            self.clip_func(trained, **self.clip_grad_kwargs)


@OPTIM_WRAPPERS.register_module()
class SparseOptimWrapper(_SparseNorm, OptimWrapper):  # type: ignore[misc]  # as above
    """OptimWrapper that does not log the norm of the gradient."""


@OPTIM_WRAPPERS.register_module()
class SparseAmpOptimWrapper(_SparseNorm, AmpOptimWrapper):  # type: ignore[misc]  # as above
    """AmpOptimWrapper that does not log the norm of the gradient."""
