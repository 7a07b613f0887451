"""Base classes of all backbones and of published ones."""

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.levels import BACKBONE_LEVELS
from smnas_optuna.parts.part import INTEGER, Choices, Config, Part, Registry

if TYPE_CHECKING:
    import optuna  # building detectors needs no Optuna
    from typing_extensions import Self  # in typing since Python 3.11

    from smnas_optuna.parts.backbones.searched import BackboneCode


class Backbone(Part):
    """A network that computes feature levels of an image."""

    # Mean and standard deviation of the images, on a scale of 0 to 255, and whether their channels are red, green and
    # blue: the images that pre-trained weights were trained with. These are those of ImageNet.
    NORMALIZATION: ClassVar[Config] = {
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "bgr_to_rgb": True,
    }
    # Whether its layers are its own, whatever layers the detectors of a search share.
    HAS_OWN_LAYERS: ClassVar[bool] = False

    @property
    @abstractmethod
    def family(self) -> str:
        """Name shared by backbones that differ in depth and width only, or the published name."""

    @property
    def depth(self) -> int | None:
        """Depth: weighted layers of a published backbone, blocks of a searched one; None if it has no such number."""
        return None

    @property
    def width(self) -> int | None:
        """Channels of the first stage, or of the published network's if the family scales them; None if unknown."""
        return None

    @property
    def code(self) -> "BackboneCode | None":
        """The code of this backbone, or of the nearest one that has a code, from which stage two starts.

        None if no code is near; stage two cannot refine it.
        """
        return None

    @property
    def levels(self) -> tuple[int, ...]:
        """Numbers of the feature levels that it has, ascending."""
        return BACKBONE_LEVELS

    @property
    def imagenet_weights(self) -> str | None:
        """Checkpoint of ImageNet weights, as MMEngine names it; None if there is none for this backbone."""
        return None

    def checkpoint_of(self, file: Path) -> str:
        """Return the URI with which MMEngine loads a file of weights of this backbone."""
        return str(file)

    @property
    def normalization(self) -> Config:
        """``mean``, ``std`` and ``bgr_to_rgb`` of an MMDetection config's ``data_preprocessor``."""
        return self.NORMALIZATION

    @abstractmethod
    def channels(self, levels: tuple[int, ...]) -> list[int]:
        """Return the channels of each feature level.

        Args:
            levels: Numbers of levels, 1 to 4, such as ``(2, 3, 4)`` for P2 to P4.
        """

    @abstractmethod
    def config(self, levels: tuple[int, ...], detector: Detector, weights: str | None = None) -> Config:
        """Return the ``backbone`` of an MMDetection config, without the stages after its last level.

        Args:
            levels: Numbers of the feature levels that it outputs, 1 to 4, ascending.
            detector: Settings that all detectors of the search share.
            weights: URI or file of a checkpoint to start from; None for random weights.
        """


BACKBONES: Registry[Backbone] = Registry("backbone")
"""The families of backbones."""

register_backbone = BACKBONES.register


def training_config(detector: Detector, weights: str | None) -> Config:
    """Return the settings that backbones of all families share: layers, initial weights, and what is frozen."""
    return {
        **detector.backbone_layers,
        "init_cfg": {"type": "Pretrained", "checkpoint": weights} if weights else None,
        # Pretrained statistics and early layers are kept; trained from scratch there is nothing to keep.
        "frozen_stages": 1 if weights else -1,
        "norm_eval": weights is not None,
    }


@dataclass(frozen=True)
class ClassicBackbone(Backbone):
    """A published backbone, or the same with all channels scaled: ``ResNet50``, ``ResNet18(w=16)``.

    Args:
        name: The published name, one of ``DEPTHS``.
        width: Channels of the first stage. 64 is the published network (for MobileNetV2 the multiplier 1.0); all
            channels are scaled by ``width / 64``.

    Raises:
        ValueError: The name is unknown, or the width is not positive.
    """

    PUBLISHED_WIDTH: ClassVar[int] = 64
    # By published name: the number of weighted layers, and the checkpoint of ImageNet weights.
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
        """Parse ``NAME`` or ``NAME(w=WIDTH)``; None if the text is no backbone of this family."""
        match = re.fullmatch(rf"({'|'.join(cls.DEPTHS)})(?:\(w=({INTEGER})\))?", re.sub(r"\s", "", text))
        return cls(match[1], int(match[2] or cls.PUBLISHED_WIDTH)) if match else None

    @property
    def choice(self) -> str:
        """The published name; the width is the space's."""
        return self.name

    @classmethod
    def suggest(cls, choice: str, trial: "optuna.trial.BaseTrial", space: Choices) -> "Self":
        """Return the backbone with a name, at the width of the space."""
        return cls(choice, space.base_channels)

    def params(self, space: Choices) -> dict[str, tuple[Any, tuple[Any, ...]]]:
        """Return no parameters; raises ValueError if the width is not the space's."""
        if self.width != space.base_channels:
            raise ValueError(f"{self} does not have base_channels {space.base_channels}")
        return {}

    @classmethod
    def offers(cls, choice: str) -> bool:
        """Return whether a choice is a published name of this family."""
        return choice in cls.DEPTHS

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
        """Kind of residual block; backbones of one kind can be compared in the partial order."""

    @property
    def place(self) -> tuple[str, tuple[int, ...]]:
        """Deeper and wider is bigger within one kind of block."""
        return self.block, (self.depth, self.width)

    @property
    def imagenet_weights(self) -> str | None:
        """Checkpoint of ImageNet weights, as MMEngine names it; None for another width than the published one."""
        return self.WEIGHTS[self.name] if self.width == self.PUBLISHED_WIDTH else None
