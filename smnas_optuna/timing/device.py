"""The device that detectors are trained and timed on, and what else the inference time depends on."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from smnas_optuna.errors import UserError


@dataclass(frozen=True)
class FoundGpus:
    """The CUDA GPUs that this process sees, and whether torch can use them.

    Args:
        listed: Number of GPUs that the driver lists, which it does even if it is too old for torch.
        usable: Indices of the GPUs that torch can use.
        problem: Why torch cannot use the others, one line; empty if there is no reason.
    """

    listed: int
    usable: tuple[int, ...]
    problem: str


def find_gpus() -> FoundGpus:
    """Find out which visible CUDA GPUs torch can use, by running a kernel on each.

    Even if the driver lists a GPU, the driver may be too old for torch's CUDA, or torch may have no kernels for the
    GPU. Processes that are forked from this one cannot use CUDA afterwards.
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
        # Other processes use all memory at the moment; the GPU itself works.
        return None
    except RuntimeError as error:
        compiled = ", ".join(torch.cuda.get_arch_list())
        return f"GPU {index}: {_first_line(error)} (torch {torch.__version__} has kernels for {compiled})"
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


def kind_of_device(*, amp: bool) -> str:
    """Return ``cuda`` if torch sees a GPU, else ``cpu``; raises UserError for mixed precision without a GPU."""
    if torch.cuda.is_available():
        return "cuda"
    if amp:
        raise UserError("--amp: mixed precision needs a CUDA GPU, and torch sees none here")
    return "cpu"


def gpu_uuid(index: int) -> str:
    """Return the unique identifier, as nvidia-smi prints it, of a GPU by its index in this process."""
    return f"GPU-{torch.cuda.get_device_properties(index).uuid}"


def conditions(
    kind: str, gpus: Sequence[str] = (), *, standardized: bool = False, compiled: bool = False
) -> dict[str, str]:
    """Return the conditions, besides the device, that the inference time depends on, by name.

    Args:
        kind: ``cpu`` or ``cuda``.
        gpus: Unique identifiers of the GPUs in use; if their power limits differ, all limits are returned.
        standardized: Whether detectors have standardised weights, which are constants when they are timed.
        compiled: Whether detectors are compiled with torch.compile when they are timed.
    """
    # Detectors are timed in float32, however they are trained; torch's flags decide where TensorFloat-32 is used.
    values = {"torch": torch.__version__, "precision": "float32", "layers": "compiled" if compiled else "eager"}
    if standardized:
        values["standardised weights"] = "folded"
    if kind == "cuda":
        flags = {"convolutions": torch.backends.cudnn.allow_tf32, "matrices": torch.backends.cuda.matmul.allow_tf32}
        values["TF32"] = " and ".join(name for name, is_allowed in flags.items() if is_allowed) or "off"
        values |= _nvidia_conditions(gpus)
    return values


def _nvidia_conditions(gpus: Sequence[str]) -> dict[str, str]:
    """Return driver version and power limits from nvidia-smi, which has no power limits of MIG instances."""
    command = ["nvidia-smi", "--query-gpu=uuid,driver_version,power.limit", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        uuids, drivers, limits = zip(*(line.split(", ") for line in output.splitlines()), strict=True)
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    values = {"driver": drivers[0]}
    limit_of = dict(zip(uuids, limits, strict=True))
    if gpus and all(gpu in limit_of for gpu in gpus):
        values["power limit"] = ", ".join(dict.fromkeys(limit_of[gpu] for gpu in gpus))
    return values


def cpu_name() -> str:
    """Return the CPU's model name and the number of threads that torch uses."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = "CPU"
    threads = torch.get_num_threads()
    return f"{name}, {threads} {'threads' if threads > 1 else 'thread'}"


def amp_type() -> str:
    """Return the type of numbers that mixed precision computes with: bfloat16 if the GPU supports it."""
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
