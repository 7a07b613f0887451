"""Architecture of a detector: what the search proposes, and what a detector is built from.

An architecture is a value: backbone, neck, RPN, head and input size. Its canonical text uses the names of Tables 2 and
7 of SM-NAS (Yao et al., AAAI 2020), in the order of Table 2, separated by one space::

    800x600 ResNet50 FPN(P1-P5,c=256) RPN Cascade(n=3)
    512x512 ResNet18(w=16) FPN(P2-P3:P2-P5,c=64) RetinaNet
    512x512 MobileNetV2 GA-RPN 2FC
    512x512 basicblock_64_1-21-21-12 FPN(P2-P5,c=128) RPN 2FC
    640x640 CSPNeXt-s CSPNeXtPAFPN(P2-P4,c=128) RTMDet
    640x640 timm:convnext_tiny PAFPN(P2-P5,c=128) ATSS

Each part is of one of the families in ``parts/backbones/``, ``necks/``, ``rpns/`` and ``heads/``, or of a user's own.
"""

import re
from dataclasses import dataclass

from smnas_optuna.parts.backbones.backbone import BACKBONES, Backbone
from smnas_optuna.parts.heads.head import HEADS, Head
from smnas_optuna.parts.levels import SINGLE_LEVEL
from smnas_optuna.parts.necks.neck import NECKS, Neck
from smnas_optuna.parts.part import INTEGER, Part
from smnas_optuna.parts.rpns.rpn import RPN, RPNS


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
        backbone: The backbone.
        neck: The neck; None for the original Faster R-CNN, whose heads use the backbone's level P3 alone.
        rpn: The RPN; None if and only if the head is a one-stage head.
        head: The head.

    Raises:
        ValueError: The parts do not go together.
    """

    input_size: InputSize
    backbone: Backbone
    neck: Neck | None
    rpn: RPN | None
    head: Head

    def __post_init__(self) -> None:
        for part in self.parts:
            reason = part.conflict(self)
            if reason is not None:
                raise ValueError(f"architecture {self}: {reason}")

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
        compact = re.sub(r"\([^)]*\)", lambda match: re.sub(r"\s", "", match[0]), BACKBONES.compact(text))
        parts = compact.split()
        if len(parts) < 3:
            raise ValueError(f"architecture {text!r}: expected INPUT_SIZE BACKBONE [NECK] [RPN] HEAD")
        size, backbone, *optional, head = parts
        # A neck that is not known is recognised by its arguments, its name, or the RPN that follows.
        has_neck = len(optional) > 1 or any("(" in part or "FPN" in part.upper() for part in optional)
        neck = NECKS.parse(optional.pop(0)) if has_neck else None
        rpn = RPNS.parse(optional.pop(0)) if optional else None
        if optional:
            raise ValueError(f"architecture {text!r}: {optional[0]!r} is one part too many")
        return cls(InputSize.parse(size), BACKBONES.parse(backbone), neck, rpn, HEADS.parse(head))
