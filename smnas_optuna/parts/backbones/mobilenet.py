"""MobileNetV2 (Sandler et al. 2018)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from smnas_optuna.parts.backbones.backbone import ClassicBackbone, register_backbone, training_config
from smnas_optuna.parts.backbones.searched import BackboneCode
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.part import Config

# Channels of levels P1..P4 at the published width, and the indices of the layers that output them.
_CHANNELS = (24, 32, 96, 320)
_LAYERS = (1, 2, 4, 6)


@register_backbone
@dataclass(frozen=True)
class MobileNetV2(ClassicBackbone):
    """MobileNetV2: ``MobileNetV2``, ``MobileNetV2(w=16)``."""

    DEPTHS: ClassVar[Mapping[str, int]] = {"MobileNetV2": 53}
    FORMS: ClassVar[tuple[str, ...]] = tuple(DEPTHS)
    WEIGHTS: ClassVar[Mapping[str, str]] = {"MobileNetV2": "open-mmlab://mmdet/mobilenet_v2"}

    @property
    def block(self) -> str:
        """``inverted residual``."""
        return "inverted residual"

    @property
    def code(self) -> BackboneCode:
        """The nearest code; MobileNetV2 itself widens in smaller steps than codes can say."""
        base = max(2, round(self.width * 24 / self.PUBLISHED_WIDTH / 2) * 2)
        return BackboneCode("MBblock", base, ("11", "211", "2111111", "2111"))

    @property
    def _multiplier(self) -> float:
        return self.width / self.PUBLISHED_WIDTH

    def channels(self, levels: tuple[int, ...]) -> list[int]:
        """Return the channels of feature levels; see :class:`~smnas_optuna.parts.backbones.backbone.Backbone`."""
        return [_divisible_by_8(_CHANNELS[level - 1] * self._multiplier) for level in levels]

    def config(self, levels: tuple[int, ...], detector: Detector, weights: str | None = None) -> Config:
        """Return the config; see :class:`~smnas_optuna.parts.backbones.backbone.Backbone`."""
        return training_config(detector, weights) | {
            "type": "TruncatedMobileNetV2",
            "widen_factor": self._multiplier,
            "out_indices": [_LAYERS[level - 1] for level in levels],
        }


def _divisible_by_8(channels: float) -> int:
    """Round as MobileNetV2 does: to a multiple of 8, and down by no more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
