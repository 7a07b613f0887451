"""Search space of stage two: what is searched of each candidate (SM-NAS, section 3.2.2)."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.searched import BackboneCode
from smnas_optuna.parts.section import PositiveFloat
from smnas_optuna.search_space.candidate import BlockSpace, CandidateSpace, ChannelChoices
from smnas_optuna.search_space.widths import WidthSpace


def _ascending_with_one(widths: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(widths)) < len(widths) or 1 not in widths:
        raise ValueError(f"found {', '.join(map(str, widths))}, expected distinct widths, 1 among them")
    return tuple(sorted(widths))


class ModularSpace(BaseModel):
    """The search space of stage two; keys that a recipe omits have the defaults.

    Of a candidate whose backbone has a code, the backbone and the channels of the neck are searched; of any other, such
    as one with a backbone of timm, the channels of the neck and the width of the head.

    The default base channels and FPN channels are the paper's; 24 base channels are those of MobileNetV2. The paper
    does not give its bounds on blocks; with these the space contains E0 to E5 and all published backbones of stage one.

    Args:
        basicblock: Choices for candidates with ResNet18 or 34.
        bottleneck: Choices for candidates with ResNet50 or 101.
        Xbottleneck: Choices for candidates with ResNeXt50 or 101.
        MBblock: Choices for candidates with MobileNetV2.
        fpn_channels: Choices of the channels of every level of a neck: positive, distinct; they are sorted.
        head_widths: Choices of the width of a head, relative to that of the candidate in stage one: positive, distinct,
            1 among them; they are sorted.

    Raises:
        pydantic.ValidationError: A value is not valid; the message says what was found and what was expected.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    basicblock: BlockSpace = BlockSpace(base_channels=(48, 56, 64, 72), blocks=("1-4", "1-6", "1-8", "1-8"))
    bottleneck: BlockSpace = BlockSpace(base_channels=(48, 56, 64, 72), blocks=("1-4", "1-10", "1-24", "1-10"))
    Xbottleneck: BlockSpace = BlockSpace(base_channels=(48, 56, 64, 72), blocks=("1-4", "1-6", "1-24", "1-10"))
    MBblock: BlockSpace = BlockSpace(base_channels=(24, 48, 56, 64, 72), blocks=("1-4", "1-6", "1-10", "1-6"))
    fpn_channels: ChannelChoices = (128, 256, 512)
    head_widths: Annotated[tuple[PositiveFloat, ...], AfterValidator(_ascending_with_one)] = (0.25, 0.5, 0.75, 1.0, 1.5)

    @field_validator(*BackboneCode.BLOCKS, mode="before")
    @classmethod
    def _with_defaults(cls, value: object, info: ValidationInfo) -> object:
        """Return the choices of one kind of block, with the defaults for keys that the recipe omits."""
        assert info.field_name is not None
        default: BlockSpace = cls.model_fields[info.field_name].default
        return default.model_dump() | value if isinstance(value, dict) else value

    @property
    def blocks(self) -> dict[str, BlockSpace]:
        """The choices for backbones by their kind of block."""
        return {
            "basicblock": self.basicblock,
            "bottleneck": self.bottleneck,
            "Xbottleneck": self.Xbottleneck,
            "MBblock": self.MBblock,
        }

    def for_candidate(self, architecture: Architecture) -> "CandidateSpace | WidthSpace":
        """Return the search space of one candidate of stage one.

        Args:
            architecture: The candidate; its backbone may be a published one or a code.

        Raises:
            ValueError: The space would not contain the candidate itself; the message names the bound.
        """
        code = architecture.backbone.code
        space: CandidateSpace | WidthSpace
        if code is None:
            kind, space = "widths", WidthSpace(architecture, self.fpn_channels, self.head_widths)
        else:
            kind, space = f"{code.block}s", CandidateSpace(architecture, self.blocks[code.block], self.fpn_channels)
        try:
            space.params(space.baseline)
        except ValueError as error:
            raise ValueError(f"candidate {architecture} is outside of the space of {kind}: {error}") from None
        return space
