"""The processes of one training, one per GPU, that torch's launcher has started.

``torchrun --nproc-per-node 8 -m smnas_optuna.train found.py`` starts eight. Nothing here loads torch by itself.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from smnas_optuna.errors import UserError

# The launcher looks at its processes ten times a second.
_UNTIL_ENDED = 30
# For each other. One may have to wait while a detector is timed on its GPU, see device_lock.py.
_LONGEST_WAIT = timedelta(hours=1)


def is_launched() -> bool:
    """Tell whether torch's launcher has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def process_count() -> int:
    """Return how many processes train together, on all machines."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def processes_here() -> int:
    """Return how many of them are on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if is_launched() else 1


def is_first() -> bool:
    """Tell whether this process is the one that prints and writes files."""
    return not is_launched() or os.environ["RANK"] == "0"


@contextlib.contextmanager
def told_once() -> Iterator[None]:
    """Let a mistake that all processes see be told by the first alone, before the launcher ends them all."""
    try:
        yield
    except UserError:
        if is_first():
            raise
        time.sleep(_UNTIL_ENDED)
        sys.exit(2)


def backend(kind: str) -> str:
    """Return what processes on a kind of device, ``cpu`` or ``cuda``, talk through."""
    return "nccl" if kind == "cuda" else "gloo"


def join(config: Any, kind: str) -> None:
    """Meet the other processes, and set an MMEngine config for training with them; only the first prints from now on.

    Args:
        config: Of a Runner; changed.
        kind: ``cpu`` or ``cuda``, on which each process gets the GPU of its own number.
    """
    import torch

    config.launcher = "pytorch"
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        # MMEngine's own choice would tie the model to a GPU.
        config.model_wrapper_cfg = {
            "type": "MMDistributedDataParallel",
            "find_unused_parameters": config.get("find_unused_parameters", False),
            "device_ids": None,
        }
    torch.distributed.init_process_group(backend(kind), timeout=_LONGEST_WAIT)
    if not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # until the process ends
