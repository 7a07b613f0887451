"""Architecture: the word that the search and the detector builder share.

An architecture is a value: which backbone, neck, RPN, head and input size. Its canonical text uses the vocabulary of
Tables 2 and 7 of SM-NAS (Yao et al., AAAI 2020), parts parted by one blank in the order of Table 2::

    800x600 ResNet50 FPN(P1-P5,c=256) RPN Cascade(n=3)
    512x512 ResNet18(w=16) FPN(P2-P3:P2-P5,c=64) RetinaNet
    512x512 MobileNetV2 GA-RPN 2FC
    512x512 basicblock_64_1-21-21-12 FPN(P2-P5,c=128) RPN 2FC

Feature levels: P1 has stride 4 (ResNet's C2), P2 8, P3 16, P4 32, P5 64, P6 128; the last two are made by the neck.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing since Python 3.11

_INTEGER = r"[1-9]\d*"
BACKBONE_LEVELS = (1, 2, 3, 4)


def stride_of(level: int) -> int:
    """Return the stride, in input pixels, of feature level P``level``: 4 for P1, doubling with each level."""
    return 1 << (level + 1)


@dataclass(frozen=True)
class InputSize:
    """The box, in pixels, that an image is scaled to fit with its aspect ratio kept: ``800x600``."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"input size {self}: width and height are at least 1 pixel")

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @classmethod
    def parse(cls, text: str) -> "InputSize":
        """Parse ``WIDTHxHEIGHT``; raises ValueError."""
        match = re.fullmatch(rf"({_INTEGER})x({_INTEGER})", text.strip())
        if match is None:
            raise ValueError(f"input size {text!r}: expected WIDTHxHEIGHT in pixels, such as 800x600")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class ClassicBackbone:
    """A published backbone, or the same with every channel count scaled: ``ResNet50``, ``ResNet18(w=16)``.

    Args:
        name: One of ``NAMES``.
        width: Channels of the first stage; 64 is the published network (for MobileNetV2 the multiplier 1.0) and
            every other count scales by ``width / 64``.
    """

    PUBLISHED_WIDTH: ClassVar[int] = 64
    DEPTHS: ClassVar[Mapping[str, int]] = {
        "ResNet18": 18,
        "ResNet34": 34,
        "ResNet50": 50,
        "ResNet101": 101,
        "ResNeXt50": 50,
        "ResNeXt101": 101,
        "MobileNetV2": 53,
    }
    NAMES: ClassVar[tuple[str, ...]] = tuple(DEPTHS)

    name: str
    width: int = PUBLISHED_WIDTH

    def __post_init__(self) -> None:
        if self.name not in self.DEPTHS:
            raise ValueError(f"backbone {self.name!r}: expected one of {', '.join(self.NAMES)}")
        if self.width < 1:
            raise ValueError(f"backbone {self.name}: width {self.width} is not a positive number of channels")

    def __str__(self) -> str:
        return self.name if self.width == self.PUBLISHED_WIDTH else f"{self.name}(w={self.width})"

    @property
    def depth(self) -> int:
        """Number of weighted layers, as in the published name."""
        return self.DEPTHS[self.name]

    @property
    def block(self) -> str:
        """Kind of residual block, which tells the families apart within which deeper is bigger."""
        if self.name == "MobileNetV2":
            return "inverted residual"
        if self.name.startswith("ResNeXt"):
            return "ResNeXt"
        return "basic" if self.depth < 50 else "bottleneck"

    @property
    def code(self) -> "BackboneCode":
        """The same backbone as a code; MobileNetV2, which widens in smaller steps, as the nearest one there is."""
        blocks = {"basic": "basicblock", "bottleneck": "bottleneck", "ResNeXt": "Xbottleneck"}
        if self.block == "inverted residual":
            base = max(2, round(self.width * 24 / self.PUBLISHED_WIDTH / 2) * 2)
            return BackboneCode("MBblock", base, ("11", "211", "2111111", "2111"))
        return BackboneCode(blocks[self.block], self.width, _CLASSIC_STAGES[self.depth])

    @classmethod
    def parse(cls, text: str) -> "ClassicBackbone":
        """Parse ``NAME`` or ``NAME(w=WIDTH)``; raises ValueError."""
        match = re.fullmatch(rf"(\w+)(?:\(w=({_INTEGER})\))?", re.sub(r"\s", "", text))
        if match is None:
            raise ValueError(f"backbone {text!r}: expected one of {', '.join(cls.NAMES)}, with (w=WIDTH) if narrowed")
        return cls(match[1], int(match[2] or cls.PUBLISHED_WIDTH))


_CLASSIC_STAGES = {
    18: ("11", "21", "21", "21"),
    34: ("111", "2111", "211111", "211"),
    50: ("111", "2111", "211111", "211"),
    101: ("111", "2111", "2" + 22 * "1", "211"),
}


@dataclass(frozen=True)
class BackboneCode:
    """A searched backbone in the paper's code (section 3.2.2), ``basicblock_56_12-11111-211-1112``.

    A searched network begins with two convolutions of stride 2. The codes of the published ResNets and ResNeXts, at
    base 64, mean those networks themselves, whose stem is one 7x7 convolution and max-pooling.

    Args:
        block: One of ``BLOCKS``.
        base: Channels (planes) before the first doubling.
        stages: Four strings for the stages at stride 4, 8, 16 and 32, a digit per block: 1 keeps the channels, 2
            doubles them in that block.
    """

    BLOCKS: ClassVar[tuple[str, ...]] = ("basicblock", "bottleneck", "Xbottleneck", "MBblock")

    block: str
    base: int
    stages: tuple[str, str, str, str]

    def __post_init__(self) -> None:
        if self.block not in self.BLOCKS:
            raise ValueError(f"backbone code {self}: block {self.block!r} is none of {', '.join(self.BLOCKS)}")
        if self.base < 1:
            raise ValueError(f"backbone code {self}: base {self.base} is not a positive number of channels")
        if len(self.stages) != 4 or not all(re.fullmatch("[12]+", stage) for stage in self.stages):
            raise ValueError(f"backbone code {self}: expected four stages of digits 1 and 2, parted by '-'")

    def __str__(self) -> str:
        return f"{self.block}_{self.base}_{'-'.join(self.stages)}"

    @property
    def planes(self) -> tuple[tuple[int, ...], ...]:
        """Channels of each block, stage by stage; bottleneck and ResNeXt blocks put out four times as many."""
        widths, width = [], self.base
        for stage in self.stages:
            row = []
            for digit in stage:
                width *= int(digit)
                row.append(width)
            widths.append(tuple(row))
        return tuple(widths)

    @property
    def published(self) -> "ClassicBackbone | None":
        """The published network that this code means, if it means one."""
        return _PUBLISHED.get(self)

    @classmethod
    def parse(cls, text: str) -> "BackboneCode":
        """Parse ``BLOCK_BASE_S2-S3-S4-S5``, blanks as good as underscores; raises ValueError that points at the error.

        The position in the error counts from 1 in ``text``.
        """
        patterns = (
            ("|".join(cls.BLOCKS), f"a block: {', '.join(cls.BLOCKS)}"),
            (r"[ _]+", "'_'"),
            (_INTEGER, "the base channels"),
            (r"[ _]+", "'_'"),
            *[("[12]+", "a digit 1 or 2 per block"), ("-", "'-' before the next of four stages")] * 3,
            ("[12]+", "a digit 1 or 2 per block"),
            (r"\s*\Z", "the end after four stages of digits 1 and 2"),
        )
        found: list[str] = []
        position = 0
        for pattern, expected in patterns:
            match = re.compile(pattern).match(text, position)
            if match is None:
                wrong = repr(text[position]) if position < len(text) else "the end"
                place = f"backbone code {text!r}: at character {position + 1}"
                raise ValueError(f"{place} found {wrong}, expected {expected}")
            found.append(match[0])
            position = match.end()
        return cls(found[0], int(found[2]), (found[4], found[6], found[8], found[10]))


_PUBLISHED = {
    backbone.code: backbone
    for backbone in map(ClassicBackbone, ClassicBackbone.NAMES)
    if backbone.name != "MobileNetV2"
}

Backbone = ClassicBackbone | BackboneCode


_Neck = TypeVar("_Neck", bound="FPN")


@dataclass(frozen=True)
class FPN:
    """Feature pyramid network from the backbone's levels Pa..Pb to levels Pa..Pd: ``FPN(P2-P3:P2-P5,c=256)``.

    The inputs are left out of the text where they are all of the outputs that a backbone has, as the paper writes it:
    ``FPN(P2-P5,c=256)`` takes P2-P4.

    Another pyramid between the same levels is a subclass with a ``NAME`` of its own, see :func:`register_neck`.

    Args:
        first: a, the first level in and out; 1 to 4.
        last_input: b, the last backbone level used; a to 4.
        last_output: d, the last level put out; b to 6.
        channels: Channels of every output level.
    """

    # What texts and recipes call the neck, and MMDetection's registry the module that is built for it.
    NAME: ClassVar[str] = "FPN"

    first: int
    last_input: int
    last_output: int
    channels: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last_input <= 4 or not self.last_input <= self.last_output <= 6:
            raise ValueError(f"neck {self}: expected input levels Pa-Pb, output levels Pa-Pd, a <= b <= 4, b <= d <= 6")
        if self.channels < 1:
            raise ValueError(f"neck {self}: {self.channels} is not a positive number of channels")

    @property
    def input_levels(self) -> tuple[int, ...]:
        """Backbone levels that come in."""
        return tuple(range(self.first, self.last_input + 1))

    @property
    def output_levels(self) -> tuple[int, ...]:
        """Levels put out."""
        return tuple(range(self.first, self.last_output + 1))

    def __str__(self) -> str:
        outputs = f"P{self.first}-P{self.last_output}"
        natural = self.last_input == min(self.last_output, BACKBONE_LEVELS[-1])
        inputs = "" if natural else f"P{self.first}-P{self.last_input}:"
        return f"{self.NAME}({inputs}{outputs},c={self.channels})"

    @classmethod
    def parse(cls, text: str) -> "Self":
        """Parse ``NAME([Pa-Pb:]Pa-Pd,c=CHANNELS)``; raises ValueError."""
        levels = rf"\((?:P(\d)-P(\d):)?P(\d)-P(\d),c=({_INTEGER})\)"
        match = re.fullmatch(re.escape(cls.NAME) + levels, re.sub(r"\s|_", "", text))
        if match is None or match[1] not in (None, match[3]):
            raise ValueError(
                f"neck {text!r}: expected {cls.NAME}([Pa-Pb:]Pa-Pd,c=CHANNELS), such as {cls.NAME}(P1-P5,c=256)"
            )
        last_output = int(match[4])
        last_input = int(match[2]) if match[2] else min(last_output, BACKBONE_LEVELS[-1])
        return cls(int(match[3]), last_input, last_output, int(match[5]))


NECKS: dict[str, type[FPN]] = {FPN.NAME: FPN}
"""Every pyramid that texts and recipes may name, by its name."""


def register_neck(neck: type[_Neck]) -> type[_Neck]:
    """Let texts, recipes and search spaces name another feature pyramid; a decorator of a subclass of :class:`FPN`.

    MMDetection's registry has to know a module of the same name that takes FPN's arguments (``in_channels``,
    ``out_channels``, ``num_outs``, ``add_extra_convs``, ``conv_cfg``, ``norm_cfg``). A recipe whose ``imports`` lists
    the module with the subclass may then list its name among the space's ``necks``.

    Args:
        neck: Its ``NAME`` is made of letters, digits and ``-``.

    Raises:
        ValueError: The name is no such name, or another class has it.
    """
    if not re.fullmatch("[A-Za-z][A-Za-z0-9-]*", neck.NAME):
        raise ValueError(f"neck {neck.NAME!r}: expected a name of letters, digits and '-'")
    known = NECKS.setdefault(neck.NAME, neck)
    if known.__qualname__ != neck.__qualname__:
        raise ValueError(f"neck {neck.NAME!r}: {known.__module__}.{known.__qualname__} has this name already")
    return neck


def parse_neck(text: str) -> FPN:
    """Parse the text of any registered neck, such as ``FPN(P1-P5,c=256)``; raises ValueError."""
    return NECKS.get(text.partition("(")[0].strip(), FPN).parse(text)


@dataclass(frozen=True)
class RPN:
    """Region proposal network: ``RPN`` (Ren et al. 2015) or ``GA-RPN``, guided anchoring (Wang et al. 2019)."""

    TEXTS: ClassVar[tuple[str, ...]] = ("RPN", "GA-RPN")

    guided_anchoring: bool = False

    def __str__(self) -> str:
        return self.TEXTS[self.guided_anchoring]

    @classmethod
    def parse(cls, text: str) -> "RPN":
        """Parse ``RPN`` or ``GA-RPN``; raises ValueError."""
        if text not in cls.TEXTS:
            raise ValueError(f"RPN {text!r}: expected RPN or GA-RPN")
        return cls(text == "GA-RPN")


@dataclass(frozen=True)
class RetinaNetHead:
    """The one-stage head of RetinaNet (Lin et al. 2017): ``RetinaNet``."""

    def __str__(self) -> str:
        return "RetinaNet"


@dataclass(frozen=True)
class RCNNHead:
    """Two-fully-connected-layer RCNN head: ``2FC``, or a cascade of 2 to 4 such stages: ``Cascade(n=3)``."""

    stages: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.stages <= 4:
            raise ValueError(f"head: a cascade has 2 to 4 stages, not {self.stages}")

    def __str__(self) -> str:
        return "2FC" if self.stages == 1 else f"Cascade(n={self.stages})"


Head = RetinaNetHead | RCNNHead


def parse_backbone(text: str) -> Backbone:
    """Parse a published backbone's name or a searched backbone's code; raises ValueError."""
    return BackboneCode.parse(text) if re.match("|".join(BackboneCode.BLOCKS), text) else ClassicBackbone.parse(text)


def parse_head(text: str) -> Head:
    """Parse ``RetinaNet``, ``2FC`` or ``Cascade(n=STAGES)``; raises ValueError."""
    compact = re.sub(r"\s", "", text)
    if compact == "RetinaNet":
        return RetinaNetHead()
    if compact == "2FC":
        return RCNNHead(1)
    match = re.fullmatch(r"Cascade\(n=([2-4])\)", compact)
    if match is None:
        raise ValueError(f"head {text!r}: expected RetinaNet, 2FC or Cascade(n=2), Cascade(n=3), Cascade(n=4)")
    return RCNNHead(int(match[1]))


@dataclass(frozen=True)
class Architecture:
    """A whole detector.

    Args:
        input_size: What images are scaled to.
        backbone: Published or searched.
        neck: None for the original Faster R-CNN setting, where the heads work on the backbone's level P3 alone.
        rpn: None exactly where the head is RetinaNet's.
        head: RetinaNet's, or an RCNN head that needs an RPN.
    """

    input_size: InputSize
    backbone: Backbone
    neck: FPN | None
    rpn: RPN | None
    head: Head

    def __post_init__(self) -> None:
        if isinstance(self.head, RetinaNetHead) != (self.rpn is None):
            raise ValueError(f"architecture {self}: RetinaNet goes with no RPN, every other head needs one")

    def __str__(self) -> str:
        parts = (self.input_size, self.backbone, self.neck, self.rpn, self.head)
        return " ".join(str(part) for part in parts if part is not None)

    @classmethod
    def parse(cls, text: str) -> "Architecture":
        """Parse the canonical text, or the paper's spelling of it; raises ValueError that names the wrong part."""
        code = re.compile(rf"\b({'|'.join(BackboneCode.BLOCKS)})[ _]+(\d+)[ _]+(?=\d+-)")
        compact = re.sub(r"\([^)]*\)", lambda match: re.sub(r"\s", "", match[0]), code.sub(r"\1_\2_", text))
        parts = compact.split()
        if len(parts) < 3:
            raise ValueError(f"architecture {text!r}: expected INPUT_SIZE BACKBONE [NECK] [RPN] HEAD")
        size, backbone, *optional, head = parts
        has_neck = len(optional) > 1 or any("(" in part or "FPN" in part.upper() for part in optional)
        neck = parse_neck(optional.pop(0)) if has_neck else None
        rpn = RPN.parse(optional.pop(0)) if optional else None
        if optional:
            raise ValueError(f"architecture {text!r}: {optional[0]!r} is one part too many")
        return cls(InputSize.parse(size), parse_backbone(backbone), neck, rpn, parse_head(head))
