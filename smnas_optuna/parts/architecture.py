"""Architecture of a detector: what the search proposes, and what a detector is built from.

An architecture is a value: backbone, neck, RPN, head and input size. Its canonical text uses the names of Tables 2 and
7 of SM-NAS (Yao et al., AAAI 2020), in the order of Table 2, separated by one space::

    800x600 ResNet50 FPN(P1-P5,c=256) RPN Cascade(n=3)
    512x512 ResNet18(w=16) FPN(P2-P3:P2-P5,c=64) RetinaNet
    512x512 MobileNetV2 GA-RPN 2FC
    512x512 basicblock_64_1-21-21-12 FPN(P2-P5,c=128) RPN 2FC
"""

import re
from dataclasses import dataclass

from smnas_optuna.parts.backbones.backbone import Backbone, ClassicBackbone
from smnas_optuna.parts.backbones.mobilenet import MobileNetV2
from smnas_optuna.parts.backbones.resnet import ResNet
from smnas_optuna.parts.backbones.searched import BackboneCode
from smnas_optuna.parts.heads.head import Head
from smnas_optuna.parts.heads.rcnn import RCNNHead
from smnas_optuna.parts.heads.retinanet import RetinaNetHead
from smnas_optuna.parts.levels import SINGLE_LEVEL
from smnas_optuna.parts.necks.fpn import FPN, parse_neck
from smnas_optuna.parts.part import INTEGER, Part
from smnas_optuna.parts.rpns.guided_anchoring import GuidedAnchoringRPN
from smnas_optuna.parts.rpns.rpn import RPN

_CLASSIC_FAMILIES: tuple[type[ClassicBackbone], ...] = (ResNet, MobileNetV2)
CLASSIC_BACKBONES = {name: family for family in _CLASSIC_FAMILIES for name in family.DEPTHS}
"""The family of each published backbone, by the backbone's name."""

_RPNS = {rpn.NAME: rpn for rpn in (RPN, GuidedAnchoringRPN)}
_HEADS: tuple[type[Head], ...] = (RetinaNetHead, RCNNHead)


def parse_backbone(text: str) -> Backbone:
    """Parse a published backbone's name or a searched backbone's code; raises ValueError."""
    if re.match("|".join(BackboneCode.BLOCKS), text):
        return BackboneCode.parse(text)
    for family in _CLASSIC_FAMILIES:
        backbone = family.parse(text)
        if backbone is not None:
            return backbone
    raise ValueError(f"backbone {text!r}: expected one of {', '.join(CLASSIC_BACKBONES)}, with (w=WIDTH) if narrowed")


def parse_rpn(text: str) -> RPN:
    """Parse ``RPN`` or ``GA-RPN``; raises ValueError."""
    if text not in _RPNS:
        raise ValueError(f"RPN {text!r}: expected {' or '.join(_RPNS)}")
    return _RPNS[text]()


def parse_head(text: str) -> Head:
    """Parse ``RetinaNet``, ``2FC`` or ``Cascade(n=STAGES)``; raises ValueError."""
    compact = re.sub(r"\s", "", text)
    for family in _HEADS:
        head = family.parse(compact)
        if head is not None:
            return head
    raise ValueError(f"head {text!r}: expected {', '.join(family.TEXTS for family in _HEADS)}")


@dataclass(frozen=True)
class InputSize:
    """Size in pixels that images are scaled to fit into, with their aspect ratio kept: ``800x600``."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"input size {self}: expected width and height of at least 1 pixel")

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @classmethod
    def parse(cls, text: str) -> "InputSize":
        """Parse ``WIDTHxHEIGHT``; raises ValueError."""
        match = re.fullmatch(rf"({INTEGER})x({INTEGER})", text.strip())
        if match is None:
            raise ValueError(f"input size {text!r}: expected WIDTHxHEIGHT in pixels, such as 800x600")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Architecture:
    """A whole detector.

    Args:
        input_size: Size that images are scaled to fit into.
        backbone: A published or a searched backbone.
        neck: The neck; None for the original Faster R-CNN, whose heads use the backbone's level P3 alone.
        rpn: The RPN; None if and only if the head is RetinaNet's.
        head: RetinaNet's head, or an RCNN head, which needs an RPN.

    Raises:
        ValueError: Head and RPN do not fit together.
    """

    input_size: InputSize
    backbone: Backbone
    neck: FPN | None
    rpn: RPN | None
    head: Head

    def __post_init__(self) -> None:
        if (self.rpn is None) == self.head.NEEDS_RPN:
            raise ValueError(f"architecture {self}: RetinaNet has no RPN, every other head needs one")

    def __str__(self) -> str:
        return " ".join(map(str, (self.input_size, *self.parts)))

    @property
    def parts(self) -> tuple[Part, ...]:
        """Backbone, neck, RPN and head, as far as the architecture has them."""
        return tuple(part for part in (self.backbone, self.neck, self.rpn, self.head) if part is not None)

    @property
    def backbone_levels(self) -> tuple[int, ...]:
        """Feature levels that the backbone outputs; its stages after the last of them are not built."""
        return self.neck.input_levels if self.neck else (SINGLE_LEVEL,)

    @classmethod
    def parse(cls, text: str) -> "Architecture":
        """Parse the canonical text, also as SM-NAS's tables spell it; raises ValueError that names the faulty part."""
        code = re.compile(rf"\b({'|'.join(BackboneCode.BLOCKS)})[ _]+(\d+)[ _]+(?=\d+-)")
        compact = re.sub(r"\([^)]*\)", lambda match: re.sub(r"\s", "", match[0]), code.sub(r"\1_\2_", text))
        parts = compact.split()
        if len(parts) < 3:
            raise ValueError(f"architecture {text!r}: expected INPUT_SIZE BACKBONE [NECK] [RPN] HEAD")
        size, backbone, *optional, head = parts
        has_neck = len(optional) > 1 or any("(" in part or "FPN" in part.upper() for part in optional)
        neck = parse_neck(optional.pop(0)) if has_neck else None
        rpn = parse_rpn(optional.pop(0)) if optional else None
        if optional:
            raise ValueError(f"architecture {text!r}: {optional[0]!r} is one part too many")
        return cls(InputSize.parse(size), parse_backbone(backbone), neck, rpn, parse_head(head))
