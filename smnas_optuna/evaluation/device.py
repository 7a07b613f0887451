"""The device that detectors are trained and timed on: which it is, and what else may change a time."""

import subprocess
from collections.abc import Sequence

import torch

from smnas_optuna.errors import UserError


def kind_of_device(*, amp: bool) -> str:
    """Return what torch trains on here, ``cuda`` or ``cpu``; raises UserError where mixed precision needs a GPU."""
    if torch.cuda.is_available():
        return "cuda"
    if amp:
        raise UserError("--amp: torch sees no CUDA GPU here, and needs one for mixed precision")
    return "cpu"


def gpus_in_use(count: int) -> list[str]:
    """Return the unique identifiers, as nvidia-smi has them, of the first GPUs that this process sees."""
    count = min(count, torch.cuda.device_count())
    return [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(count)]


def device_name(kind: str) -> str:
    """Return the product's name, of a CPU with the number of threads in use."""
    return torch.cuda.get_device_name(0) if kind == "cuda" else _cpu_name()


def conditions(kind: str, *, amp: bool, gpus: Sequence[str] = ()) -> dict[str, str]:
    """Return what may change a time on a device, by name.

    Args:
        kind: ``cpu`` or ``cuda``.
        amp: Whether a GPU computes in mixed precision.
        gpus: Unique identifiers of the GPUs in use. Where their power limits differ, all are listed.
    """
    found = {"torch": torch.__version__, "precision": "mixed" if amp and kind == "cuda" else "float32"}
    if kind == "cuda":
        found |= _nvidia_conditions(gpus)
    return found


def _nvidia_conditions(gpus: Sequence[str]) -> dict[str, str]:
    """Return what nvidia-smi says of some GPUs, in their order; of parts of a GPU (MIG) it knows no power limit."""
    command = ["nvidia-smi", "--query-gpu=uuid,driver_version,power.limit", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        uuids, drivers, limits = zip(*(line.split(", ") for line in answer.splitlines()), strict=True)
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    found = {"driver": drivers[0]}
    limit_of = dict(zip(uuids, limits, strict=True))
    if gpus and all(gpu in limit_of for gpu in gpus):
        found["power limit"] = ", ".join(dict.fromkeys(limit_of[gpu] for gpu in gpus))
    return found


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = "CPU"
    threads = torch.get_num_threads()
    return f"{name}, {threads} {'threads' if threads > 1 else 'thread'}"
