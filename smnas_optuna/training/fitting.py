"""Whether training fits into a device's memory, and in how many parts a batch goes through the detector for it.

A batch that is too large is taken in equal parts whose gradients are averaged before the step (gradient accumulation),
so a step learns from as many images, at the same learning rate. Two things differ: a RetinaNet head divides its loss by
the objects of the images that go through it together, and where images are left over at an epoch's end, the step takes
the first of the next epoch in too.
"""

from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from smnas_optuna.errors import UserError
from smnas_optuna.training.job import Memory, TooLarge

# What a process needs before its first tensor: CUDA's context with the kernels that it loads, or its libraries.
_PROCESS_BYTES = {"cuda": 600 * 2**20, "cpu": 2**30}
# Of the rest: the caching allocator holds more than is in use, since images differ in size; on a CPU the operating
# system and the loaders of images need some too.
_SHARE = {"cuda": 0.92, "cpu": 0.8}


def usable_memory(
    kind: str, device: str, wanted_gb: float | None, *, total: int, trainings: int = 1, processes: int = 1
) -> int:
    """Return the bytes that the tensors of one training may take on a device.

    It is told by how much memory there is and not by what happens to be free, so that whether an architecture fits
    does not depend on when it is tried.

    Args:
        kind: ``cpu`` or ``cuda``.
        device: Its name, for messages.
        wanted_gb: GiB that the recipe gives to the tensors of all trainings on the device instead.
        total: Bytes that the device has, the smallest of several GPUs; see :func:`gpu_memory`, :func:`machine_memory`.
        trainings: How many share the device, each with as much of it.
        processes: Of each training on the device. Each of them needs memory before its first tensor.

    Raises:
        UserError: There is less than ``wanted_gb``.
    """
    if wanted_gb is not None:
        if wanted_gb * 2**30 > total:
            raise UserError(f"device.memory_gb: found {wanted_gb:g}, but {device} has {total / 2**30:.1f} GiB")
        return int(wanted_gb * 2**30) // trainings
    tensors = _SHARE[kind] * (total - trainings * processes * _PROCESS_BYTES[kind])
    return max(0, int(tensors) // trainings)


def gpu_memory(index: int) -> int:
    """Return the bytes of a GPU that this process sees."""
    total: int = torch.cuda.get_device_properties(index).total_memory
    return total


def machine_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this process's control group may have, or the machine has where there is no such limit.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    return min([psutil.virtual_memory().total, *_group_limits(root)])


def _group_limits(root: Path) -> list[int]:
    """Return the memory limits of this process's control group and of those around it; see cgroups(7)."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    files = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
        # In a container the group's own folder is the mount itself, whatever its path is outside.
        top = root / "sys/fs/cgroup" / mount
        own = top / path.lstrip("/")
        files += [folder / name for folder in (own, *own.parents) if folder.is_relative_to(top)]
    texts = [file.read_text(encoding="ascii").strip() for file in files if file.is_file()]
    return [int(text) for text in texts if text.isdigit()]


def fit_batch(batch: int, usable: int, needed: Callable[[int], int], *, divisible: bool) -> Memory | TooLarge:
    """Choose in how few equal parts a batch fits.

    Args:
        batch: Images per step and GPU.
        usable: Bytes that training may take.
        needed: Bytes that training takes with the batch in so many parts, which have to divide it.
        divisible: Whether the batch may be parted at all.
    """
    for parts in range(1, (batch if divisible else 1) + 1):
        if batch % parts == 0:
            images, taken = batch // parts, needed(parts)
            if taken <= usable:
                return Memory(taken, parts)
    return TooLarge(images, taken, usable)
