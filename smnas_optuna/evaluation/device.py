"""The device that detectors are trained and timed on: which it is, and what else may change a time."""

import subprocess

import torch

from smnas_optuna.errors import UserError


def kind_of_device(*, amp: bool) -> str:
    """Return what torch trains on here, ``cuda`` or ``cpu``; raises UserError where mixed precision needs a GPU."""
    if torch.cuda.is_available():
        return "cuda"
    if amp:
        raise UserError("--amp: torch sees no CUDA GPU here, and needs one for mixed precision")
    return "cpu"


def device_name(kind: str) -> str:
    """Return the product's name, of a CPU with the number of threads in use."""
    return torch.cuda.get_device_name(0) if kind == "cuda" else _cpu_name()


def conditions(kind: str, *, amp: bool) -> dict[str, str]:
    """Return what may change a time on a device, by name."""
    found = {"torch": torch.__version__, "precision": "mixed" if amp and kind == "cuda" else "float32"}
    if kind == "cuda":
        found |= _nvidia_conditions()
    return found


def _nvidia_conditions() -> dict[str, str]:
    command = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        driver, limit = answer.splitlines()[0].split(", ")
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {}
    return {"driver": driver, "power limit": limit}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = "CPU"
    threads = torch.get_num_threads()
    return f"{name}, {threads} {'threads' if threads > 1 else 'thread'}"
