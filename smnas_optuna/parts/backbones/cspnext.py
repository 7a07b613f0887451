"""CSPNeXt, the backbone of RTMDet (Lyu et al. 2022)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from smnas_optuna.parts.backbones.backbone import Backbone, register_backbone, training_config
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.optimization import Optimization
from smnas_optuna.parts.part import Config

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing since Python 3.11

# Channels of levels P1..P4, and blocks of the stages that output them, where both factors are 1.
_CHANNELS = (128, 256, 512, 1024)
_BLOCKS = (3, 6, 6, 3)
RTMDET = Optimization(
    optimizer="AdamW", lr=0.004, base_batch_size=256, weight_decay=0.05, warmup_iterations=1000, average_weights=True
)
"""The settings that RTMDet was published with."""

_FACTOR = r"\d+(?:\.\d+)?"
_URL = "https://download.openmmlab.com/mmdetection/v3.0/rtmdet/cspnext_rsb_pretrain/cspnext-{}_imagenet_600e.pth"


@register_backbone
@dataclass(frozen=True)
class CSPNeXt(Backbone):
    """A CSPNeXt: ``CSPNeXt-s``, or with other factors than the published ones ``CSPNeXt(d=0.5,w=0.25)``.

    Args:
        deepen: Factor of the number of blocks; larger than 0.
        widen: Factor of the number of channels; at least 0.0625, which makes the narrowest layer 2 channels wide.

    Raises:
        ValueError: A factor is out of range.
    """

    # The factors of RTMDet-tiny, -s, -m, -l and -x.
    PUBLISHED: ClassVar[Mapping[str, tuple[float, float]]] = {
        "CSPNeXt-tiny": (0.167, 0.375),
        "CSPNeXt-s": (0.33, 0.5),
        "CSPNeXt-m": (0.67, 0.75),
        "CSPNeXt-l": (1.0, 1.0),
        "CSPNeXt-x": (1.33, 1.25),
    }
    FORMS: ClassVar[tuple[str, ...]] = (*PUBLISHED, "CSPNeXt(d=DEPTH,w=WIDTH)")
    OPTIMIZATION: ClassVar[Optimization] = RTMDET
    NORMALIZATION: ClassVar[Config] = {
        "mean": [103.53, 116.28, 123.675],
        "std": [57.375, 57.12, 58.395],
        "bgr_to_rgb": False,
    }

    deepen: float
    widen: float

    def __post_init__(self) -> None:
        if not self.deepen > 0 or not self.widen >= 0.0625:
            raise ValueError(f"backbone {self}: expected a depth above 0 and a width of at least 0.0625")

    def __str__(self) -> str:
        return self._published or f"CSPNeXt(d={self.deepen:g},w={self.widen:g})"

    @property
    def _published(self) -> str | None:
        factors = (self.deepen, self.widen)
        return next((name for name, published in self.PUBLISHED.items() if published == factors), None)

    @classmethod
    def parse(cls, text: str) -> "Self | None":
        """Parse a published name or ``CSPNeXt(d=DEPTH,w=WIDTH)``; None for any other text."""
        if text in cls.PUBLISHED:
            return cls(*cls.PUBLISHED[text])
        match = re.fullmatch(rf"CSPNeXt\(d=({_FACTOR}),w=({_FACTOR})\)", text)
        return cls(float(match[1]), float(match[2])) if match else None

    @property
    def family(self) -> str:
        """``CSPNeXt``."""
        return "CSPNeXt"

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(max(round(blocks * self.deepen), 1) for blocks in _BLOCKS)

    @property
    def width(self) -> int:
        """Channels of the stem."""
        return int(64 * self.widen)

    @property
    def place(self) -> tuple[str, tuple[int, ...]]:
        """Deeper and wider is bigger."""
        return "CSPNeXt", (self.depth, self.width)

    @property
    def imagenet_weights(self) -> str | None:
        """Checkpoint of ImageNet weights; None for other factors than those of RTMDet-tiny and -s."""
        size = (self._published or "").removeprefix("CSPNeXt-")
        return _URL.format(size) if size in ("tiny", "s") else None

    def channels(self, levels: tuple[int, ...]) -> list[int]:
        """Return the channels of feature levels; see :class:`~smnas_optuna.parts.backbones.backbone.Backbone`."""
        return [int(_CHANNELS[level - 1] * self.widen) for level in levels]

    def config(self, levels: tuple[int, ...], detector: Detector, weights: str | None = None) -> Config:
        """Return the config; see :class:`~smnas_optuna.parts.backbones.backbone.Backbone`."""
        config = training_config(detector, weights) | {
            "type": "TruncatedCSPNeXt",
            "deepen_factor": self.deepen,
            "widen_factor": self.widen,
            "out_indices": list(levels),
            "act_cfg": {"type": "SiLU", "inplace": True},
        }
        if weights is None:
            del config["init_cfg"]  # the class's own initialisation, not none
        else:
            # RTMDet trains all of it; the checkpoint is that of a classifier.
            config["frozen_stages"] = -1
            config["init_cfg"]["prefix"] = "backbone."
        return config
