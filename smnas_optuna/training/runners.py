"""What all trainings share: config sections for MMEngine's Runner, and the layout of weights."""

from typing import Any

import torch

# Iterations between two entries of the training log.
LOG_INTERVAL = 50


def hooks_config(checkpoint: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the config section ``default_hooks``.

    Args:
        checkpoint: Config of the hook that saves checkpoints; None to save none.
    """
    return {
        "timer": {"type": "IterTimerHook"},
        "logger": {"type": "LoggerHook", "interval": LOG_INTERVAL},
        "param_scheduler": {"type": "ParamSchedulerHook"},
        "sampler_seed": {"type": "DistSamplerSeedHook"},
        "checkpoint": checkpoint,
    }


def environment_config(backend: str, **more: Any) -> dict[str, Any]:
    """Return the config section ``env_cfg``.

    Args:
        backend: Backend of ``torch.distributed``, ``nccl`` or ``gloo``.
        more: Further settings of the section.
    """
    return {
        **more,
        "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0},
        "dist_cfg": {"backend": backend},
    }


def put_channels_last(model: torch.nn.Module) -> None:
    """Put the weights of convolutions into the layout in which CPUs compute them, above all separable ones, faster.

    Standardised weights keep theirs, which mmcv's layer needs.
    """
    for module in model.modules():
        if type(module) is torch.nn.Conv2d:
            module.to(memory_format=torch.channels_last)
