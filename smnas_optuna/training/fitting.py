"""Whether training fits into a device's memory, and into how many parts a batch must be split to fit.

A batch that is too large is split into equal parts whose gradients are averaged before the optimizer's step (gradient
accumulation). A step then still uses the same number of images and the same learning rate. Two things differ from a
step with the whole batch: a RetinaNet head divides the loss by the number of objects in a part instead of the batch,
and if images are left over at the end of an epoch, the step also uses the first images of the next epoch.
"""

from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from smnas_optuna.errors import UserError
from smnas_optuna.training.job import Memory, TooLarge

# Bytes that a process needs before its first tensor: CUDA's context and kernels (800 MiB on an H100), or its libraries.
_PROCESS_BYTES = {"cuda": 832 * 2**20, "cpu": 2**30}
# Share of the remaining memory that tensors may use. CUDA's caching allocator holds more than is in use, since images
# differ in size, and a training on an H100 used up to 1.06 of the estimate. On a CPU the operating system and the data
# loaders need memory, too.
_SHARE = {"cuda": 0.92, "cpu": 0.8}


def usable_memory(
    kind: str, device: str, memory_gb: float | None, *, total: int, trainings: int = 1, processes: int = 1
) -> int:
    """Return the bytes that the tensors of one training may use on a device.

    The result depends on the device's total memory, not on the memory that happens to be free, so that whether an
    architecture fits does not depend on when it is evaluated.

    Args:
        kind: Kind of device, ``cpu`` or ``cuda``.
        device: Name of the device, for the error message.
        memory_gb: The recipe's ``device.memory_gb``: GiB for the tensors of all trainings on the device; None to use
            the total memory less a margin.
        total: Total memory of the device in bytes, or of the smallest of several GPUs; see :func:`gpu_memory` and
            :func:`machine_memory`.
        trainings: Number of trainings that share the device equally.
        processes: Number of processes that each training has on the device.

    Raises:
        UserError: ``memory_gb`` is more than the device has.
    """
    if memory_gb is not None:
        if memory_gb * 2**30 > total:
            raise UserError(f"device.memory_gb: found {memory_gb:g}, but {device} has {total / 2**30:.1f} GiB")
        return int(memory_gb * 2**30) // trainings
    tensors = _SHARE[kind] * (total - trainings * processes * _PROCESS_BYTES[kind])
    return max(0, int(tensors) // trainings)


def gpu_memory(index: int) -> int:
    """Return the total memory in bytes of the GPU with an index in this process."""
    total: int = torch.cuda.get_device_properties(index).total_memory
    return total


def machine_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this process may use: the limit of its control group, or the machine's memory if lower.

    Args:
        root: Folder that contains ``proc`` and ``sys``.
    """
    return min([psutil.virtual_memory().total, *_group_limits(root)])


def _group_limits(root: Path) -> list[int]:
    """Return the memory limits of this process's control group and of its ancestors; see cgroups(7)."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    files = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
        # In a container the mount itself may be the group's folder, while the path is the one outside the container.
        top = root / "sys/fs/cgroup" / mount
        group = top / path.lstrip("/")
        files += [folder / name for folder in (group, *group.parents) if folder.is_relative_to(top)]
    texts = [file.read_text(encoding="ascii").strip() for file in files if file.is_file()]
    return [int(text) for text in texts if text.isdigit()]


def fit_batch(batch: int, usable: int, needed: Callable[[int], int], *, divisible: bool) -> Memory | TooLarge:
    """Return the smallest number of equal parts with which a batch fits into memory.

    Args:
        batch: Images per step and GPU.
        usable: Bytes that training may use.
        needed: Function that returns the bytes that training needs with the batch split into a number of parts; it is
            called with divisors of ``batch`` only.
        divisible: Whether the batch may be split.

    Returns:
        The memory needed and the number of parts; TooLarge if not even single images fit, or the whole batch does not
        fit and may not be split.
    """
    for parts in range(1, (batch if divisible else 1) + 1):
        if batch % parts == 0:
            images, taken = batch // parts, needed(parts)
            if taken <= usable:
                return Memory(taken, parts)
    return TooLarge(images, taken, usable)
