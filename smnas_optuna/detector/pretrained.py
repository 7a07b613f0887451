"""Which published weights a detector can start from. Imports no torch; whether they can be had is not known here."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from smnas_optuna.detector.zoo import trained_on_coco
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.backbone import Backbone
from smnas_optuna.parts.detector import Detector


class UnfitWeights(ValueError):
    """Weights do not fit a model; the text names the first tensor that differs."""


@dataclass(frozen=True)
class Pretrained:
    """Pre-trained weights of a backbone or of a whole detector.

    Args:
        checkpoint: URI or file, as MMEngine loads it.
        source: What reports call them, such as ``ImageNet``.
        of_detector: Whether they are those of a detector, of which everything is loaded that fits in name and shape.
    """

    checkpoint: str
    source: str
    of_detector: bool = False

    def __str__(self) -> str:
        return self.source

    @property
    def file(self) -> Path | None:
        """The file of the weights; None if they are downloaded."""
        _, is_uri, rest = self.checkpoint.partition("://")
        path = rest.partition(":")[2] if is_uri else self.checkpoint
        return Path(path) if path and not path.startswith("//") else None


def pretrained_for(
    backbone: Backbone, detector: Detector, architecture: Architecture | None = None
) -> list[Pretrained]:
    """Return the published weights that a detector with a backbone can start from, the best first.

    Detectors that were trained on COCO come first, then the weights of a classifier of ImageNet. There are none for
    layers that published backbones do not have.

    Args:
        backbone: The backbone.
        detector: Settings that all detectors of the search share.
        architecture: The detector's architecture; of the detectors trained on COCO, those that share most of its parts
            come first.
    """
    if not backbone.HAS_OWN_LAYERS and not detector.has_published_layers:
        return []

    def shared_parts(trained: Architecture) -> int:
        if architecture is None:
            return 0
        necks = [(each.choice, each.channels) if each else None for each in (architecture.neck, trained.neck)]
        return (necks[0] == necks[1]) + (type(architecture.head) is type(trained.head))

    trained = sorted(trained_on_coco(backbone), key=lambda pair: shared_parts(pair[0]), reverse=True)
    detectors = [Pretrained(url, f"COCO ({PurePosixPath(url).stem})", of_detector=True) for _, url in trained]
    imagenet = backbone.imagenet_weights
    return detectors + ([Pretrained(imagenet, "ImageNet")] if imagenet else [])
