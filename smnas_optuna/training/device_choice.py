"""Which device a run trains on, and whether all that it needs is there; called in processes of their own."""

import os
from collections.abc import Callable

import mmengine.device.utils
import torch

from smnas_optuna.detector.deployment import check_compiler
from smnas_optuna.detector.weights import check_weights
from smnas_optuna.errors import UserError
from smnas_optuna.timing.cores import usable_cores
from smnas_optuna.timing.device import conditions, cpu_name, find_gpus, gpu_uuid
from smnas_optuna.timing.gpus import VARIABLE, announced_searches, gpu_names
from smnas_optuna.training.backbone_check import check_backbones
from smnas_optuna.training.fitting import gpu_memory, machine_memory, usable_memory
from smnas_optuna.training.initial_weights import check_reachable, find_weights
from smnas_optuna.training.job import DeviceRequest, Target

# Fewest and most processes that load images, for each GPU.
_LEAST_LOADERS, _MOST_LOADERS = 2, 8
# Characters of an error message of torch.compile that are shown.
_LONGEST_REASON = 200


def probe(request: DeviceRequest, report: Callable[[Target], None]) -> None:
    """Choose the device that a run requests, fetch the pre-trained weights, and report the device.

    Args:
        request: The requested device and weights.
        report: Called with the device.

    Raises:
        UserError: The device is not available or does not support a setting of the recipe, a backbone does not exist,
            or weights cannot be fetched or do not fit.
    """
    recipe, device = request.recipe, request.recipe.device
    gpus, problem = choose_gpus(request)
    kind = "cuda" if gpus else "cpu"
    use_device(kind)
    if device.cpu_threads:
        torch.set_num_threads(device.cpu_threads)
    for stage, settings in recipe.stages.items():
        if kind == "cpu" and settings.detector.norm == "SyncBN":
            raise UserError(f"{stage}.detector.norm: SyncBN needs CUDA GPUs; expected BN or GN")
    if request.stage == "structural":
        check_backbones(recipe)
    settings = recipe.stages[request.stage]
    for each in request.weights:
        config = each.backbone.config(each.backbone.levels, settings.detector)
        place = f"{each.key}: {each.checkpoint} for {each.backbone}"
        otherwise = "a file per backbone, or none to train from scratch"
        check_reachable(place, each.checkpoint, otherwise)
        check_weights(place, each.checkpoint, config, otherwise=otherwise)
    unreachable: tuple[str, ...] = ()
    missing = ""
    if request.automatic is not None:
        found, missing = find_weights(request.automatic, request.backbones, settings.detector)
        unreachable = found.unreachable
    name = torch.cuda.get_device_name(gpus[0]) if gpus else cpu_name()
    # On GPUs each process of a training has its own; on the CPU all of them share the machine's memory.
    processes = 1 if gpus else device.gpus_per_trial
    total = min(map(gpu_memory, gpus)) if gpus else machine_memory()
    memory = usable_memory(kind, name, device.memory_gb, total=total, trainings=request.sharing, processes=processes)
    uuids = tuple(map(gpu_uuid, gpus))
    timing_conditions = conditions(
        kind, uuids, standardized=settings.detector.weight_standardization, compiled=device.timing.compiled
    )
    if device.timing.compiled:
        _check_compiler(torch.device("cuda", gpus[0]) if gpus else torch.device("cpu"))
    names = gpu_names(os.environ.get(VARIABLE), torch.cuda.device_count()) if gpus else ()
    chosen = tuple(names[index] for index in gpus) if gpus else None
    loaders = _loader_workers(request, kind)
    warnings = tuple(filter(None, (problem, missing)))
    report(
        Target(
            kind,
            name,
            max(1, len(gpus)),
            memory,
            timing_conditions,
            loaders,
            gpus=chosen,
            uuids=uuids,
            unreachable=unreachable,
            warnings=warnings,
        )
    )


def _check_compiler(device: torch.device) -> None:
    """Compile some layers; raises UserError if torch.compile does not work on this machine."""
    try:
        check_compiler(device)
    except Exception as error:  # of many types: no compiler, no Triton, an old GPU
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise UserError(f"device.timing.compiled: found true, but torch.compile fails here: {reason}") from None


def _loader_workers(request: DeviceRequest, kind: str) -> int:
    """Return how many processes shall load images for each GPU, given the cores that training leaves free."""
    if kind == "cpu":
        return _LEAST_LOADERS
    processes = request.workers * request.recipe.device.gpus_per_trial
    cores = len(usable_cores()) // processes - 1
    return min(max(cores, _LEAST_LOADERS), _MOST_LOADERS)


def choose_gpus(request: DeviceRequest) -> tuple[list[int], str]:
    """Return the indices of the GPUs to use, and a warning about the choice.

    The list is empty if the CPU is to be used. The warning is empty if there is none.

    Raises:
        UserError: The recipe requires more GPUs than torch can use.
    """
    device = request.recipe.device
    if device.kind == "cpu":
        return [], ""
    gpus = find_gpus()
    if not gpus.usable:
        if device.kind == "cuda":
            raise UserError(f"device.kind: found cuda, but {gpus.problem or 'no GPU is visible'}; expected auto or cpu")
        return [], f"trains on the CPU, since torch cannot use the GPU: {gpus.problem}" if gpus.listed else ""
    if device.gpus_per_trial > len(gpus.usable):
        usable = f" that torch can use ({gpus.problem})" if gpus.problem else ""
        raise UserError(
            f"device.gpus_per_trial: found {device.gpus_per_trial}, but there are {len(gpus.usable)} GPUs{usable} here"
        )
    usage = {index: announced_searches(gpu_uuid(index)) for index in gpus.usable}
    # A worker uses the GPUs that it was assigned; otherwise those with the fewest other searches are chosen.
    order = gpus.usable if request.gpus else sorted(gpus.usable, key=lambda index: len(usage[index]))
    chosen = order[: device.gpus_per_trial]
    others = sorted({str(owner) for index in chosen if len(usage[index]) >= request.sharing for owner in usage[index]})
    if not others:
        return list(chosen), gpus.problem
    return list(chosen), (
        f"shares a GPU with {', '.join(others)}, each of which may take all of its memory; expected other GPUs in "
        f"{VARIABLE}, or device.memory_gb"
    )


def visible_gpus(_: None, report: Callable[[tuple[tuple[str, ...], str]], None]) -> None:
    """Report the names of the CUDA GPUs that torch can use, and why it cannot use the others, if there are any."""
    gpus = find_gpus()
    names = gpu_names(os.environ.get(VARIABLE), torch.cuda.device_count() if gpus.usable else 0)
    # A process sees only the first of several parts of a GPU (MIG), so whether others are usable is unknown.
    usable = [name for index, name in enumerate(names) if index in gpus.usable or index >= torch.cuda.device_count()]
    report((tuple(usable), gpus.problem if gpus.listed else ""))


def use_device(kind: str) -> None:
    """Make MMEngine's Runner use a kind of device; by default it uses the one that it detected when imported."""
    mmengine.device.utils.DEVICE = kind
