"""What backbones of every family have in common, and those that have a published name."""

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.part import INTEGER, Config, Part

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing since Python 3.11

    from smnas_optuna.parts.backbones.searched import BackboneCode


class Backbone(Part):
    """A network that puts out feature levels of an image."""

    @property
    @abstractmethod
    def family(self) -> str:
        """What backbones that differ in depth and width only have in common, or the published name."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """How deep it is, in the unit of its family."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Channels at its beginning, in the unit of its family."""

    @property
    @abstractmethod
    def code(self) -> "BackboneCode":
        """The same backbone, or the nearest one, as a code, whose depth and width stage two searches."""

    @property
    def imagenet_weights(self) -> str | None:
        """Where MMDetection fetches the ImageNet weights of the published width; None if there are none."""
        return None

    @abstractmethod
    def channels(self, levels: tuple[int, ...]) -> list[int]:
        """Return the channels of feature levels P1 to P4, such as ``(2, 3, 4)``."""

    @abstractmethod
    def config(self, levels: tuple[int, ...], detector: Detector, weights: str | None = None) -> Config:
        """Return the ``backbone`` of a config, which stops after its last used level.

        Args:
            levels: Feature levels that it puts out, ascending.
            detector: What all detectors of the search have in common.
            weights: Checkpoint, a URI or a file; None to start from random weights.
        """


def training_config(detector: Detector, weights: str | None) -> Config:
    """Return the settings that backbones of all families have: layers, weights, and what of these stays as it is."""
    return {
        **detector.backbone_layers,
        "init_cfg": {"type": "Pretrained", "checkpoint": weights} if weights else None,
        # Statistics and early layers stay as pre-trained; from scratch there is nothing to keep.
        "frozen_stages": 1 if weights else -1,
        "norm_eval": weights is not None,
    }


@dataclass(frozen=True)
class ClassicBackbone(Backbone):
    """A published backbone, or the same with every channel count scaled: ``ResNet50``, ``ResNet18(w=16)``.

    Args:
        name: One of ``DEPTHS``.
        width: Channels of the first stage; 64 is the published network (for MobileNetV2 the multiplier 1.0) and
            every other count scales by ``width / 64``.
    """

    PUBLISHED_WIDTH: ClassVar[int] = 64
    # By the published names: weighted layers, and where ImageNet weights are.
    DEPTHS: ClassVar[Mapping[str, int]]
    WEIGHTS: ClassVar[Mapping[str, str]]

    name: str
    width: int = PUBLISHED_WIDTH

    def __post_init__(self) -> None:
        if self.name not in self.DEPTHS:
            raise ValueError(f"backbone {self.name!r}: expected one of {', '.join(self.DEPTHS)}")
        if self.width < 1:
            raise ValueError(f"backbone {self.name}: width {self.width} is not a positive number of channels")

    def __str__(self) -> str:
        return self.name if self.width == self.PUBLISHED_WIDTH else f"{self.name}(w={self.width})"

    @classmethod
    def parse(cls, text: str) -> "Self | None":
        """Return the backbone that ``NAME`` or ``NAME(w=WIDTH)`` means; None where it means none of this family."""
        match = re.fullmatch(rf"({'|'.join(cls.DEPTHS)})(?:\(w=({INTEGER})\))?", re.sub(r"\s", "", text))
        return cls(match[1], int(match[2] or cls.PUBLISHED_WIDTH)) if match else None

    @property
    def family(self) -> str:
        """The published name."""
        return self.name

    @property
    def depth(self) -> int:
        """Number of weighted layers, as in the published name."""
        return self.DEPTHS[self.name]

    @property
    @abstractmethod
    def block(self) -> str:
        """Kind of residual block, which tells the families apart within which deeper is bigger."""

    @property
    def place(self) -> tuple[str, tuple[int, ...]]:
        """Deeper and wider is bigger within one kind of block."""
        return self.block, (self.depth, self.width)

    @property
    def imagenet_weights(self) -> str:
        """Where MMDetection fetches the ImageNet weights of the published width."""
        return self.WEIGHTS[self.name]
