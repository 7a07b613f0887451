"""How MMEngine updates weights: the configs of optimizer and learning rate, and what MMEngine lacks for them."""

import math
from typing import Any

from mmengine.hooks import EMAHook
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.runner import Runner
from torch import nn

from smnas_optuna.parts.optimization import Optimization

# Largest share of the training in which the learning rate rises.
_LONGEST_WARMUP = 0.2
# Shares of the training over which weights are averaged, and of its beginning in which the average follows the weights
# closely. These are RTMDet's: 5,000 and 2,000 of 138,750 steps.
_AVERAGED, _FOLLOWED = 0.036, 0.0144
_START_FACTOR = 0.001
# Norms and biases are not decayed, as in all publications that use AdamW.
_UNDECAYED = {"norm_decay_mult": 0.0, "bias_decay_mult": 0.0, "flat_decay_mult": 0.0, "bypass_duplicate": True}


def scaled_lr(optimization: Optimization, batch_size: int) -> float:
    """Return the highest learning rate at a batch size.

    It grows linearly with the batch size with SGD (Goyal et al. 2017), and with its square root with AdamW (Malladi et
    al. 2022).
    """
    assert optimization.lr is not None, "the settings have to be complete, see Training.suited_to"
    growth = batch_size / (optimization.base_batch_size or batch_size)
    return optimization.lr * (math.sqrt(growth) if optimization.optimizer == "AdamW" else growth)


def optimizer_config(optimization: Optimization, batch_size: int, *, fused: bool = False) -> dict[str, Any]:
    """Return ``optimizer``, ``clip_grad`` and what else an MMEngine ``optim_wrapper`` says of how weights are updated.

    Args:
        optimization: Complete settings.
        batch_size: Images per step, over all GPUs.
        fused: Whether a single kernel shall update all weights; for SGD on CUDA only.
    """
    lr, decay = scaled_lr(optimization, batch_size), optimization.weight_decay
    options: dict[str, Any] = {}
    if optimization.optimizer == "AdamW":
        optimizer = {"type": "AdamW", "lr": lr, "weight_decay": decay}
        options |= _UNDECAYED
    else:
        optimizer = {"type": "SGD", "lr": lr, "momentum": optimization.momentum, "weight_decay": decay}
        if fused:
            optimizer["fused"] = True
    if optimization.backbone_lr not in (None, 1):
        options["backbone_lr_mult"] = optimization.backbone_lr
    return {
        "optimizer": optimizer,
        "clip_grad": {"max_norm": optimization.clip_gradients} if optimization.clip_gradients else None,
        **({"constructor": "FewGroups", "paramwise_cfg": options} if options else {}),
    }


def schedule_config(
    optimization: Optimization, batch_size: int, *, epochs: int, steps: int, parts: int = 1
) -> list[dict[str, Any]]:
    """Return the ``param_scheduler`` of an MMEngine config: a linear rise, and a cosine to the final learning rate.

    Args:
        optimization: Complete settings.
        batch_size: Images per step, over all GPUs.
        epochs: Number of epochs.
        steps: Steps of the training; 0 if unknown.
        parts: Number of parts that each batch is split into. MMEngine counts each of them as a step.
    """
    lowest = optimization.final_lr
    cosine = {
        "type": "CosineAnnealingLR",
        "eta_min": scaled_lr(optimization, batch_size) / 100 if lowest is None else lowest,
        "T_max": epochs,
        "end": epochs,
        "by_epoch": True,
        "convert_to_iter_based": True,
    }
    rise = optimization.warmup_iterations or 0
    if steps:
        rise = min(rise, int(_LONGEST_WARMUP * steps))
    if not rise:
        return [cosine]
    return [{"type": "LinearLR", "start_factor": _START_FACTOR, "by_epoch": False, "end": rise * parts}, cosine]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class FewGroups(DefaultOptimWrapperConstructor):  # type: ignore[misc]  # mmengine is untyped
    """Puts parameters with equal settings into one group, which the optimizer updates with few kernels.

    MMEngine's own constructor makes a group of each parameter. ``backbone_lr_mult`` in ``paramwise_cfg`` multiplies
    the learning rate of the backbone; unlike ``custom_keys``, it leaves the rules of weight decay as they are.
    """

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = "", is_dcn_module: Any = None
    ) -> None:
        """Add the parameters of a module; those of the detector itself, once all are there, as few groups."""
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:
            return
        share = self.paramwise_cfg.get("backbone_lr_mult")
        backbone = set(module.get_submodule("backbone").parameters()) if share else ()
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for group in params:
            (parameter,) = group["params"]
            if parameter in backbone:
                group["lr"] = self.base_lr * share
            settings = {key: value for key, value in group.items() if key != "params"}
            same = groups.setdefault(tuple(sorted(settings.items())), {"params": [], **settings})
            same["params"].append(parameter)
        params[:] = groups.values()


@HOOKS.register_module()
class AverageWeights(EMAHook):  # type: ignore[misc]  # as above
    """Averages weights and batch statistics while a detector is trained, and leaves the averages in it at the end.

    The averages are exponential, over the same share of the training as RTMDet's.
    """

    def __init__(self) -> None:
        super().__init__(ema_type="mmdet.ExpMomentumEMA", update_buffers=True)

    def before_run(self, runner: Runner) -> None:
        """Create the averages."""
        steps = runner.max_iters
        self.ema_cfg["momentum"] = min(0.5, 1 / (_AVERAGED * steps))
        self.ema_cfg["gamma"] = max(1, round(_FOLLOWED * steps))
        super().before_run(runner)

    def after_train(self, runner: Runner) -> None:
        """Put the averages into the detector."""
        self._swap_ema_parameters()

    def before_test_epoch(self, runner: Runner) -> None:
        """Do nothing: the averages are in the detector already."""

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Do nothing: the averages stay in the detector."""
