"""The device that detectors are trained and timed on: which it is, and what else may change a time."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from smnas_optuna.errors import UserError


@dataclass(frozen=True)
class FoundGpus:
    """The CUDA GPUs that this process sees, and what is wrong with them.

    Args:
        listed: How many the driver lists. It does so even where it is too old for torch.
        usable: Indices of those that torch can use.
        problem: Why it cannot use the others, one line; empty if there is nothing to say.
    """

    listed: int
    usable: tuple[int, ...]
    problem: str


def find_gpus() -> FoundGpus:
    """Run a kernel on each visible CUDA GPU. Processes that are forked from this one cannot use CUDA afterwards.

    That a GPU is listed does not mean that torch can use it: the driver may be too old for torch's CUDA, and torch
    may have no kernels for the GPU.
    """
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]  # torch's is untyped
        return FoundGpus(0, (), "this build of torch has no CUDA")
    listed = torch.cuda.device_count()
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # as above
    except RuntimeError as error:
        return FoundGpus(listed, (), _first_line(error))
    problems = {index: _kernel_problem(index) for index in range(torch.cuda.device_count())}
    usable = tuple(index for index, problem in problems.items() if problem is None)
    return FoundGpus(listed, usable, "; ".join(filter(None, problems.values())))


def _kernel_problem(index: int) -> str | None:
    try:
        torch.ones(1, device=f"cuda:{index}").add(1).item()
    except torch.OutOfMemoryError:
        # Others use its memory at this moment; trials wait for theirs as on any device.
        return None
    except RuntimeError as error:
        compiled = ", ".join(torch.cuda.get_arch_list())
        return f"GPU {index}: {_first_line(error)} (torch {torch.__version__} has kernels for {compiled})"
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


def kind_of_device(*, amp: bool) -> str:
    """Return what torch trains on here, ``cuda`` or ``cpu``; raises UserError where mixed precision needs a GPU."""
    if torch.cuda.is_available():
        return "cuda"
    if amp:
        raise UserError("--amp: torch sees no CUDA GPU here, and needs one for mixed precision")
    return "cpu"


def gpu_uuid(index: int) -> str:
    """Return the unique identifier, as nvidia-smi has it, of a GPU that this process sees."""
    return f"GPU-{torch.cuda.get_device_properties(index).uuid}"


def conditions(
    kind: str, gpus: Sequence[str] = (), *, standardized: bool = False, compiled: bool = False
) -> dict[str, str]:
    """Return what may change a time on a device, by name.

    Args:
        kind: ``cpu`` or ``cuda``.
        gpus: Unique identifiers of the GPUs in use. Where their power limits differ, all are listed.
        standardized: Detectors have standardised weights, which are timed as constants.
        compiled: Detectors are timed as torch.compile compiles them.
    """
    # Detectors are timed in float32, however they are trained; what TensorFloat-32 rounds depends on torch's flags.
    found = {"torch": torch.__version__, "precision": "float32", "layers": "compiled" if compiled else "eager"}
    if standardized:
        found["standardised weights"] = "folded"
    if kind == "cuda":
        flags = {"convolutions": torch.backends.cudnn.allow_tf32, "matrices": torch.backends.cuda.matmul.allow_tf32}
        found["TF32"] = " and ".join(name for name, is_allowed in flags.items() if is_allowed) or "off"
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


def cpu_name() -> str:
    """Return the product's name of the CPU, with the number of threads in use."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = "CPU"
    threads = torch.get_num_threads()
    return f"{name}, {threads} {'threads' if threads > 1 else 'thread'}"
