"""Search space of stage one: backbone, neck, RPN, head and input size (SM-NAS, section 3.2.1)."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, model_validator

from smnas_optuna.parts.architecture import CLASSIC_BACKBONES, Architecture, InputSize, parse_head, parse_rpn
from smnas_optuna.parts.backbones.backbone import ClassicBackbone
from smnas_optuna.parts.necks.fpn import NECKS

if TYPE_CHECKING:
    import optuna  # reading a recipe to build detectors needs no Optuna


def _distinct(choices: tuple[str, ...]) -> tuple[str, ...]:
    repeated = sorted({choice for choice in choices if choices.count(choice) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} listed more than once")
    return choices


def _known_neck(name: str) -> str:
    if name != "none" and name not in NECKS:
        raise ValueError(f"found {name!r}, expected one of none, {', '.join(NECKS)}")
    return name


def _canonical_input_size(text: str) -> str:
    return str(InputSize.parse(text))


BackboneName = Literal["ResNet18", "ResNet34", "ResNet50", "ResNet101", "ResNeXt50", "ResNeXt101", "MobileNetV2"]
FPNInputs = Literal["P1-P1", "P1-P2", "P1-P3", "P1-P4", "P2-P2", "P2-P3", "P2-P4", "P3-P3", "P3-P4", "P4-P4"]
Level = Literal["P1", "P2", "P3", "P4", "P5", "P6"]
RPNKind = Literal["none", "RPN", "GA-RPN"]
HeadKind = Literal["RetinaNet", "2FC", "Cascade(n=2)", "Cascade(n=3)", "Cascade(n=4)"]


class StructuralSpace(BaseModel):
    """The search space of stage one: choices for each part of a detector.

    The default is the paper's space of 7 backbones x 4 input sizes x 41 necks x 9 pairs of RPN and head = 10,332
    architectures. With the neck ``none``, as in the original Faster R-CNN, the heads use the backbone's level P3 alone,
    at stride 16: the stride of Ren et al. (2015) and of MMDetection's C4 models.

    Args:
        backbones: Names of published backbones.
        base_channels: Channels of the first stage of every backbone; 64 is the published network.
        necks: ``none``, ``FPN``, and names of necks that are registered with
            :func:`~smnas_optuna.parts.necks.fpn.register_neck`; these have the levels and channels of an FPN.
        fpn_inputs: Ranges Pa-Pb of input levels of a neck.
        fpn_last_outputs: Last output levels Pd of a neck; with the inputs Pa-Pb those with d >= b are used.
        fpn_channels: Channels of every output level of a neck.
        rpns: ``none`` for the RetinaNet head, ``RPN`` and ``GA-RPN`` for all others.
        heads: ``RetinaNet``, ``2FC``, ``Cascade(n=2)`` to ``Cascade(n=4)``.
        input_sizes: Sizes ``WIDTHxHEIGHT`` in pixels that images are scaled to fit into.

    Raises:
        pydantic.ValidationError: A list is empty or repeats an entry, a name is unknown, or a choice cannot be combined
            with any other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbones: Annotated[tuple[BackboneName, ...], Field(min_length=1), AfterValidator(_distinct)] = (
        "ResNet18",
        "ResNet34",
        "ResNet50",
        "ResNet101",
        "ResNeXt50",
        "ResNeXt101",
        "MobileNetV2",
    )
    base_channels: PositiveInt = ClassicBackbone.PUBLISHED_WIDTH
    necks: Annotated[
        tuple[Annotated[str, AfterValidator(_known_neck)], ...], Field(min_length=1), AfterValidator(_distinct)
    ] = ("none", "FPN")
    fpn_inputs: Annotated[tuple[FPNInputs, ...], Field(min_length=1), AfterValidator(_distinct)] = (
        "P1-P1",
        "P1-P2",
        "P1-P3",
        "P1-P4",
        "P2-P2",
        "P2-P3",
        "P2-P4",
        "P3-P3",
        "P3-P4",
        "P4-P4",
    )
    fpn_last_outputs: Annotated[tuple[Level, ...], Field(min_length=1), AfterValidator(_distinct)] = (
        "P1",
        "P2",
        "P3",
        "P4",
        "P5",
        "P6",
    )
    fpn_channels: PositiveInt = 256
    rpns: Annotated[tuple[RPNKind, ...], Field(min_length=1), AfterValidator(_distinct)] = ("none", "RPN", "GA-RPN")
    heads: Annotated[tuple[HeadKind, ...], Field(min_length=1), AfterValidator(_distinct)] = (
        "RetinaNet",
        "2FC",
        "Cascade(n=2)",
        "Cascade(n=3)",
        "Cascade(n=4)",
    )
    input_sizes: Annotated[
        tuple[Annotated[str, AfterValidator(_canonical_input_size)], ...],
        Field(min_length=1),
        AfterValidator(_distinct),
    ] = ("512x512", "800x600", "1080x720", "1333x800")

    @model_validator(mode="after")
    def _every_choice_can_be_combined(self) -> "StructuralSpace":
        if ("RetinaNet" in self.heads) != ("none" in self.rpns):
            raise ValueError("heads and rpns: RetinaNet goes with the RPN 'none', so list both or neither")
        if bool(self._rcnn_heads) != bool(self._proposing_rpns):
            raise ValueError("heads and rpns: 2FC and Cascade heads need RPN or GA-RPN, so list both or neither")
        if self._pyramids:
            for inputs in self.fpn_inputs:
                if not self._last_outputs(inputs):
                    raise ValueError(f"fpn_last_outputs: none is at or above the last input level of {inputs}")
        return self

    @property
    def _pyramids(self) -> tuple[str, ...]:
        return tuple(neck for neck in self.necks if neck != "none")

    @property
    def _rcnn_heads(self) -> tuple[str, ...]:
        return tuple(head for head in self.heads if head != "RetinaNet")

    @property
    def _proposing_rpns(self) -> tuple[str, ...]:
        return tuple(rpn for rpn in self.rpns if rpn != "none")

    def backbone(self, name: str) -> ClassicBackbone:
        """Return a backbone of this space by its published name."""
        return CLASSIC_BACKBONES[name](name, self.base_channels)

    def _last_outputs(self, inputs: str) -> tuple[str, ...]:
        return tuple(level for level in self.fpn_last_outputs if level >= inputs[-2:])

    def suggest(self, trial: "optuna.trial.BaseTrial") -> Architecture:
        """Let a trial choose an architecture, define-by-run.

        The levels of a pyramid are asked for only when there is one, an RPN only when the head needs one. Each
        parameter has the same choices whenever it is asked for, so any sampler and any storage can handle it; for
        that the last output level has a name of its own for each last input level.
        """
        backbone = trial.suggest_categorical("backbone", self.backbones)
        input_size = trial.suggest_categorical("input_size", self.input_sizes)
        neck = None
        pyramid = trial.suggest_categorical("neck", self.necks)
        if pyramid != "none":
            inputs = trial.suggest_categorical("fpn_inputs", self.fpn_inputs)
            outputs = trial.suggest_categorical(_last_output_name(inputs), self._last_outputs(inputs))
            neck = NECKS[pyramid](int(inputs[1]), int(inputs[-1]), int(outputs[1]), self.fpn_channels)
        head = parse_head(trial.suggest_categorical("head", self.heads))
        rpn = parse_rpn(trial.suggest_categorical("rpn", self._proposing_rpns)) if head.NEEDS_RPN else None
        return Architecture(InputSize.parse(input_size), self.backbone(backbone), neck, rpn, head)

    def params(self, architecture: Architecture) -> dict[str, str]:
        """Return the parameters that :meth:`suggest` turns into ``architecture``.

        Raises:
            ValueError: The architecture is not in this space; the message names the part and the choices.
        """
        backbone, neck = architecture.backbone, architecture.neck
        if not isinstance(backbone, ClassicBackbone) or backbone.width != self.base_channels:
            raise ValueError(f"{backbone} is not a published backbone with base_channels {self.base_channels}")
        choices = [
            ("backbone", backbone.name, self.backbones),
            ("input_size", str(architecture.input_size), self.input_sizes),
            ("neck", "none" if neck is None else neck.NAME, self.necks),
        ]
        if neck is not None:
            if neck.channels != self.fpn_channels:
                raise ValueError(f"{neck} does not have fpn_channels {self.fpn_channels}")
            inputs = f"P{neck.first}-P{neck.last_input}"
            choices.append(("fpn_inputs", inputs, self.fpn_inputs))
            choices.append((_last_output_name(inputs), f"P{neck.last_output}", self._last_outputs(inputs)))
        choices.append(("head", str(architecture.head), self.heads))
        if architecture.rpn is not None:
            choices.append(("rpn", str(architecture.rpn), self._proposing_rpns))
        for name, value, allowed in choices:
            if value not in allowed:
                raise ValueError(f"{name} {value!r} is not among {', '.join(allowed)}")
        return {name: value for name, value, _ in choices}

    @property
    def size(self) -> int:
        """Exact number of architectures in this space."""
        levels = sum(len(self._last_outputs(inputs)) for inputs in self.fpn_inputs)
        necks = ("none" in self.necks) + len(self._pyramids) * levels
        heads = ("RetinaNet" in self.heads) + len(self._rcnn_heads) * len(self._proposing_rpns)
        return len(self.backbones) * len(self.input_sizes) * necks * heads


def _last_output_name(inputs: str) -> str:
    return f"fpn_last_output_from_{inputs[-2:]}"


def order(architecture: Architecture) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return (group, capacity vector) of an architecture from the structural space.

    x precedes y, "x is no bigger than y", iff their groups are equal and x's vector is componentwise at most y's. That
    is so where y's backbone has the same kind of block and is as deep and wide as x's or more so, and y has no smaller
    input (in either side), a superset of x's input and output levels of the neck, as many or more channels of the neck,
    and as many or more cascade stages (``2FC`` counts as a cascade of one). One-stage and two-stage detectors, kinds of
    RPNs, and kinds of necks are not comparable.

    Raises:
        TypeError: The backbone is a searched one, which only ``CandidateSpace.order`` compares.
    """
    size, neck, rpn = architecture.input_size, architecture.neck, architecture.rpn
    block, depth_and_width = architecture.backbone.place
    pyramid, levels = neck.place if neck else ("one level", ())
    proposing, _ = rpn.place if rpn else ("None", ())
    head, stages = architecture.head.place
    return (block, pyramid, proposing, head), (*depth_and_width, size.width, size.height, *levels, *stages)
