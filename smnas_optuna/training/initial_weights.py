"""Which pre-trained weights are available on this machine, and which of them a training starts from."""

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import huggingface_hub
import timm
import torch
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_external_models, get_torchvision_models

from smnas_optuna.detector import layers  # noqa: F401  # lets MMEngine load weights of timm
from smnas_optuna.detector.pretrained import Pretrained, pretrained_for
from smnas_optuna.detector.weights import check_weights
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.backbone import Backbone
from smnas_optuna.parts.detector import Detector
from smnas_optuna.training.job import SCRATCH, AutomaticWeights, WeightsRequest

_TIMM, _TORCHVISION, _OPEN_MMLAB = "timm://", "torchvision://", "open-mmlab://"
_TIMM_SUFFIXES = (".safetensors", ".pth")
# Names of timm's files on its hub.
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# Answers of a proxy that does not let a request through.
_REFUSED = (403, 407)
_PATIENCE_SECONDS = 5.0


def choose_weights(weights: AutomaticWeights, architecture: Architecture, detector: Detector) -> Pretrained | None:
    """Return the first weights that an architecture can start from here, downloaded if need be; None if there are none.

    Args:
        weights: Where to look.
        architecture: The architecture.
        detector: Settings that all detectors of the search share.
    """
    for pretrained in _available(weights, pretrained_for(architecture.backbone, detector, architecture)):
        try:
            CheckpointLoader.load_checkpoint(pretrained.checkpoint, map_location="cpu")
        except Exception as error:  # whatever a download, a file system or an unpickler may raise
            print(f"{pretrained}: cannot be loaded: {error}", flush=True)
        else:
            return pretrained
    return None


def describe_weights(request: WeightsRequest, report: Callable[[str], None]) -> None:
    """Report in words what each architecture would start from, without downloading anything."""
    _check_folder(request.weights.folder)
    for architecture in request.architectures:
        report(_first_in_words(request.weights, architecture, request.detector) or SCRATCH)


def available_weights(request: WeightsRequest) -> Iterator[str]:
    """Yield in words what each architecture can start from here, empty for nothing; hosts of weights are asked.

    Raises:
        UserError: There is no such folder, or a file in it does not fit its backbone.
    """
    backbones = tuple(dict.fromkeys(architecture.backbone for architecture in request.architectures))
    found, _ = find_weights(request.weights, backbones, request.detector)
    for architecture in request.architectures:
        yield _first_in_words(found, architecture, request.detector)


def _first_in_words(weights: AutomaticWeights, architecture: Architecture, detector: Detector) -> str:
    """Return in words the first weights that an architecture can start from; empty if there are none."""
    first = next(_available(weights, pretrained_for(architecture.backbone, detector, architecture)), None)
    return str(first) if first else ""


def find_weights(
    weights: AutomaticWeights, backbones: Sequence[Backbone], detector: Detector
) -> tuple[AutomaticWeights, str]:
    """Check the files that detectors may start from, and which hosts of other weights can be reached.

    Args:
        weights: Where to look.
        backbones: Backbones of the detectors.
        detector: Settings that all detectors of the search share.

    Returns:
        Where to look, without the hosts that cannot be reached, and a warning if backbones lack weights for that
        reason; otherwise the warning is empty.

    Raises:
        UserError: There is no such folder on this machine, or a file in it does not fit its backbone.
    """
    _check_folder(weights.folder)
    files = _files(weights.folder)
    urls: dict[str, str] = {}
    for backbone in backbones:
        for pretrained in pretrained_for(backbone, detector):
            local, url = _local(pretrained, files), _url(pretrained.checkpoint)
            if local is not None:
                check_weights(
                    f"--weights-dir {weights.folder}: {local} for {backbone}",
                    local.checkpoint,
                    backbone.config(backbone.levels, detector),
                    prefix="backbone." if local.of_detector else "",
                    otherwise="no such file there",
                )
            elif url is not None and not _is_cached(pretrained.checkpoint, url):
                urls.setdefault(urlsplit(url).netloc, url)
    unreachable = tuple(host for host, url in urls.items() if not _answers(url))
    found = replace(weights, unreachable=unreachable)
    missing = [
        str(backbone)
        for backbone in backbones
        if (published := pretrained_for(backbone, detector)) and next(_available(found, published), None) is None
    ]
    if not missing or not unreachable:
        return found, ""
    return found, (
        f"training.weights: {', '.join(unreachable)} cannot be reached, so {', '.join(missing)} "
        f"{'starts' if len(missing) == 1 else 'start'} from scratch; --weights-dir names a folder with weights"
    )


def check_reachable(place: str, checkpoint: str, otherwise: str) -> None:
    """Raise UserError if published weights have to be downloaded, and their host cannot be reached.

    Without this, libraries that download try for a minute.

    Args:
        place: Beginning of the error message: where the weights were named.
        checkpoint: URI of the weights, or a file.
        otherwise: What else could be named there, for the error message.
    """
    url = _url(checkpoint) if Pretrained(checkpoint, "").file is None else None
    if url is not None and not _is_cached(checkpoint, url) and not _answers(url):
        host = urlsplit(url).netloc
        raise UserError(
            f"{place} cannot be loaded ({host} cannot be reached); expected it to be reachable, or {otherwise}"
        )


def _check_folder(folder: Path | None) -> None:
    if folder is not None and not folder.exists():
        raise UserError(f"--weights-dir {folder}: no such folder on this machine")


def _available(weights: AutomaticWeights, published: Sequence[Pretrained]) -> Iterator[Pretrained]:
    """Yield those of some weights that can be had here: first those that are in the folder."""
    files = _files(weights.folder)
    yield from filter(None, (_local(pretrained, files) for pretrained in published))
    for pretrained in published:
        url = _url(pretrained.checkpoint)
        if url is None:
            continue
        if _is_cached(pretrained.checkpoint, url) or urlsplit(url).netloc not in weights.unreachable:
            yield pretrained


def _files(folder: Path | None) -> dict[str, Path]:
    """Return the files in a folder by their names; a single file if that is what the path names."""
    if folder is None:
        return {}
    return {file.name: file for file in (sorted(folder.iterdir()) if folder.is_dir() else [folder])}


def _local(pretrained: Pretrained, files: Mapping[str, Path]) -> Pretrained | None:
    """Return published weights as a file of the user's; None if there is none with their name."""
    checkpoint = pretrained.checkpoint
    if checkpoint.startswith(_TIMM):
        names = [checkpoint.removeprefix(_TIMM) + suffix for suffix in _TIMM_SUFFIXES]
    else:
        names = [PurePosixPath(_url(checkpoint) or checkpoint).name]
    file = next((files[name] for name in names if name in files), None)
    if file is None:
        return None
    uri = f"{checkpoint}:{file}" if checkpoint.startswith(_TIMM) else str(file)
    return replace(pretrained, checkpoint=uri, source=f"file {file.name}")


def _url(checkpoint: str) -> str | None:
    """Return the address that a published checkpoint is downloaded from; None if timm has no weights of a model."""
    if checkpoint.startswith(_TORCHVISION):
        return str(get_torchvision_models()[checkpoint.removeprefix(_TORCHVISION)])
    if checkpoint.startswith(_OPEN_MMLAB):
        return str(get_external_models()[checkpoint.removeprefix(_OPEN_MMLAB)])
    if not checkpoint.startswith(_TIMM):
        return checkpoint
    settings = timm.get_pretrained_cfg(checkpoint.removeprefix(_TIMM))
    if settings and settings.hf_hub_id:
        return f"{huggingface_hub.constants.ENDPOINT}/{settings.hf_hub_id}"
    return str(settings.url) if settings and settings.url else None


def _is_cached(checkpoint: str, url: str) -> bool:
    """Return whether a published checkpoint was downloaded before."""
    settings = timm.get_pretrained_cfg(checkpoint.removeprefix(_TIMM)) if checkpoint.startswith(_TIMM) else None
    if settings and settings.hf_hub_id:
        found = [huggingface_hub.try_to_load_from_cache(settings.hf_hub_id, name) for name in _HUB_FILES]
        return any(isinstance(path, str) for path in found)
    return (Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(url).name).is_file()


def _answers(url: str) -> bool:
    """Return whether the host of an address answers."""
    if huggingface_hub.constants.HF_HUB_OFFLINE and url.startswith(huggingface_hub.constants.ENDPOINT):
        return False
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PATIENCE_SECONDS).close()
    except urllib.error.HTTPError as error:
        return error.code not in _REFUSED and error.code < 500
    except (OSError, ValueError):
        return False
    return True
