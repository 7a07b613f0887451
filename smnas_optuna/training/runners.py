"""What the configs of all trainings have in common, as MMEngine's Runner takes it."""

from typing import Any

# Iterations.
LOG_INTERVAL = 50


def hooks_config(checkpoint: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the default hooks, with the one that saves checkpoints, if any."""
    return {
        "timer": {"type": "IterTimerHook"},
        "logger": {"type": "LoggerHook", "interval": LOG_INTERVAL},
        "param_scheduler": {"type": "ParamSchedulerHook"},
        "sampler_seed": {"type": "DistSamplerSeedHook"},
        "checkpoint": checkpoint,
    }


def environment_config(backend: str, **more: Any) -> dict[str, Any]:
    """Return the environment of processes that talk through a backend, with more settings if any."""
    return {
        **more,
        "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0},
        "dist_cfg": {"backend": backend},
    }
