"""ResNet (He et al. 2016) and ResNeXt 32x4d (Xie et al. 2017)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from smnas_optuna.parts.backbones.backbone import ClassicBackbone, register_backbone, training_config
from smnas_optuna.parts.backbones.searched import RESNET_STAGES, BackboneCode
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.part import Config

# Channels of levels P1..P4 at the published width, before an expansion by 4 in bottleneck and ResNeXt blocks.
_CHANNELS = (64, 128, 256, 512)
_CODE_BLOCKS = {"basic": "basicblock", "bottleneck": "bottleneck", "ResNeXt": "Xbottleneck"}


@register_backbone
@dataclass(frozen=True)
class ResNet(ClassicBackbone):
    """A ResNet or ResNeXt: ``ResNet50``, ``ResNeXt101``, ``ResNet18(w=16)``.

    ``ResNet50-caffe`` has its strides in the first convolution of a bottleneck, as the original network, and takes the
    images that the weights of Detectron2 were trained with; FCOS is published with it.
    """

    DEPTHS: ClassVar[Mapping[str, int]] = {
        "ResNet18": 18,
        "ResNet34": 34,
        "ResNet50": 50,
        "ResNet101": 101,
        "ResNeXt50": 50,
        "ResNeXt101": 101,
        "ResNet50-caffe": 50,
    }
    FORMS: ClassVar[tuple[str, ...]] = tuple(DEPTHS)
    WEIGHTS: ClassVar[Mapping[str, str]] = {
        "ResNet18": "torchvision://resnet18",
        "ResNet34": "torchvision://resnet34",
        "ResNet50": "torchvision://resnet50",
        "ResNet101": "torchvision://resnet101",
        "ResNeXt50": "open-mmlab://resnext50_32x4d",
        "ResNeXt101": "open-mmlab://resnext101_32x4d",
        "ResNet50-caffe": "open-mmlab://detectron2/resnet50_caffe",
    }

    @property
    def block(self) -> str:
        """``basic``, ``bottleneck``, ``ResNeXt`` or ``caffe bottleneck``."""
        if self.is_caffe:
            return "caffe bottleneck"
        if self.name.startswith("ResNeXt"):
            return "ResNeXt"
        return "basic" if self.depth < 50 else "bottleneck"

    @property
    def is_caffe(self) -> bool:
        """Whether the strides are in the first convolution of a bottleneck."""
        return self.name.endswith("-caffe")

    @property
    def normalization(self) -> Config:
        """Blue, green and red as they are, less their means, for the weights of Detectron2."""
        if self.is_caffe:
            return {"mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "bgr_to_rgb": False}
        return self.NORMALIZATION

    @property
    def code(self) -> BackboneCode | None:
        """This backbone as a code. With a width other than 64 the code's network has another stem."""
        if self.is_caffe:
            return None
        block = _CODE_BLOCKS[self.block]
        return BackboneCode(block, self.width, RESNET_STAGES[block][self.depth])

    def channels(self, levels: tuple[int, ...]) -> list[int]:
        """Return the channels of feature levels; see :class:`~smnas_optuna.parts.backbones.backbone.Backbone`."""
        expansion = 1 if self.block == "basic" else 4
        return [_CHANNELS[level - 1] * self.width // self.PUBLISHED_WIDTH * expansion for level in levels]

    def config(self, levels: tuple[int, ...], detector: Detector, weights: str | None = None) -> Config:
        """Return the config; see :class:`~smnas_optuna.parts.backbones.backbone.Backbone`."""
        config = training_config(detector, weights) | {
            "type": "ResNet",
            "depth": self.depth,
            "num_stages": levels[-1],
            "strides": (1, 2, 2, 2)[: levels[-1]],
            "dilations": (1, 1, 1, 1)[: levels[-1]],
            "out_indices": [level - 1 for level in levels],
            "base_channels": self.width,
            "stem_channels": self.width,
            "style": "caffe" if self.is_caffe else "pytorch",
        }
        if self.block == "ResNeXt":
            # 32x4d at width 64; narrower networks keep 4 channels per group at the first stage.
            config |= {"type": "ResNeXt", "groups": self.width // 2, "base_width": 4}
        return config
