"""Backbones of timm (Wightman 2019), by their names there."""

import difflib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from smnas_optuna.parts.backbones.backbone import Backbone, register_backbone
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.levels import stride_of
from smnas_optuna.parts.optimization import Optimization
from smnas_optuna.parts.part import Config

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing since Python 3.11


@dataclass(frozen=True)
class TimmFeatures:
    """What timm says of a model.

    Args:
        indices: By the number of a feature level, its index in timm's ``out_indices``.
        channels: Channels of each level.
        mean: Mean of red, green and blue that the model is trained with, 0 to 1.
        std: Standard deviation of red, green and blue, 0 to 1.
    """

    indices: dict[int, int]
    channels: dict[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@register_backbone
@dataclass(frozen=True)
class TimmBackbone(Backbone):
    """Any timm model that returns feature maps: ``timm:convnext_tiny``.

    The feature levels P1 to P4 are the model's last feature maps with strides of 4, 8, 16 and 32 pixels. Layers, and
    the normalisation of images, are the model's own. What timm knows of a model is asked for only where a detector is
    built, since importing timm imports torch; a name that timm lacks is an error there.

    Args:
        name: Name of the model in timm, without a tag of weights.
    """

    FORMS: ClassVar[tuple[str, ...]] = ("timm:NAME",)
    HAS_OWN_LAYERS: ClassVar[bool] = True
    # As MMDetection trains detectors with Swin and ConvNeXt.
    OPTIMIZATION: ClassVar[Optimization] = Optimization(
        optimizer="AdamW", lr=0.0001, base_batch_size=16, weight_decay=0.05, warmup_iterations=1000
    )

    name: str

    def __str__(self) -> str:
        return f"timm:{self.name}"

    @classmethod
    def parse(cls, text: str) -> "Self | None":
        """Parse ``timm:NAME``; None for any other text."""
        match = re.fullmatch(r"timm:(\w+)", text)
        return cls(match[1]) if match else None

    @property
    def family(self) -> str:
        """The name with ``timm:``."""
        return str(self)

    @property
    def place(self) -> tuple[str, tuple[int, ...]]:
        """Different models are not comparable."""
        return str(self), ()

    @property
    def levels(self) -> tuple[int, ...]:
        """Numbers of the feature levels that the model has, ascending; raises ValueError if timm has no such model."""
        return tuple(timm_features(self.name).channels)

    @property
    def imagenet_weights(self) -> str:
        """The weights that timm has for the model, which are not known to exist before they are asked for."""
        return f"timm://{self.name}"

    def checkpoint_of(self, file: Path) -> str:
        """Return the URI with which MMEngine loads a file of weights of the whole model, as timm saves them."""
        return f"{self.imagenet_weights}:{file}"

    @property
    def normalization(self) -> Config:
        """The model's own; raises ValueError if timm has no such model."""
        known = timm_features(self.name)
        return {
            "mean": [255 * mean for mean in known.mean],
            "std": [255 * std for std in known.std],
            "bgr_to_rgb": True,
        }

    def channels(self, levels: tuple[int, ...]) -> list[int]:
        """Return the channels of feature levels; see :class:`~smnas_optuna.parts.backbones.backbone.Backbone`.

        Raises:
            ValueError: timm has no such model, or the model lacks a level.
        """
        known = timm_features(self.name).channels
        for level in levels:
            if level not in known:
                has = ", ".join(f"P{each}" for each in known) or "none of P1 to P4"
                raise ValueError(
                    f"backbone {self}: has no level P{level}, with stride {stride_of(level)}; its levels are {has}"
                )
        return [known[level] for level in levels]

    def config(self, levels: tuple[int, ...], detector: Detector, weights: str | None = None) -> Config:
        """Return the config; see :class:`~smnas_optuna.parts.backbones.backbone.Backbone`."""
        indices = timm_features(self.name).indices
        if weights is not None and "://" not in weights:
            weights = self.checkpoint_of(Path(weights))
        return {
            "type": "TimmBackbone",
            "model": self.name,
            "out_indices": [indices[level] for level in levels],
            "out_channels": self.channels(levels),
            "sync_norm": detector.norm == "SyncBN",
            "norm_eval": weights is not None,
            "init_cfg": {"type": "Pretrained", "checkpoint": weights} if weights else None,
        }


@cache
def timm_features(name: str) -> TimmFeatures:
    """Return what timm says of a model.

    Args:
        name: Name of the model, without a tag of weights.

    Raises:
        ValueError: timm has no such model, or it does not return feature maps; the message suggests similar names.
    """
    import timm  # imports torch, so only where a detector is built
    import torch

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists all"
        raise ValueError(f"backbone timm:{name}: timm {timm.__version__} has no such model; {hint}")
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(name, features_only=True, pretrained=False)
        info = model.feature_info
        levels = list(zip(info.reduction(), info.channels(), info.out_indices, strict=True))
    except (AttributeError, RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"backbone timm:{name}: this model does not return feature maps: {reason}") from None
    # Of several feature maps of one stride, the last.
    by_level = {
        level: (channels, index)
        for level in (1, 2, 3, 4)
        for reduction, channels, index in levels
        if reduction == stride_of(level)
    }
    settings = timm.get_pretrained_cfg(name)
    return TimmFeatures(
        {level: index for level, (_, index) in by_level.items()},
        {level: channels for level, (channels, _) in by_level.items()},
        settings.mean if settings else (0.485, 0.456, 0.406),
        settings.std if settings else (0.229, 0.224, 0.225),
    )
