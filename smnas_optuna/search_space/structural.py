"""Search space of stage one: backbone, neck, RPN, head and input size (SM-NAS, section 3.2.1)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, model_validator

from smnas_optuna.parts.architecture import Architecture, InputSize
from smnas_optuna.parts.backbones.backbone import BACKBONES, Backbone, ClassicBackbone
from smnas_optuna.parts.heads.head import HEADS
from smnas_optuna.parts.levels import SINGLE_LEVEL
from smnas_optuna.parts.necks.neck import NECKS
from smnas_optuna.parts.part import Part, Registry
from smnas_optuna.parts.rpns.rpn import RPNS

if TYPE_CHECKING:
    import optuna  # reading a recipe to build detectors needs no Optuna

_NONE = "none"


def _distinct(choices: tuple[str, ...]) -> tuple[str, ...]:
    repeated = sorted({choice for choice in choices if choices.count(choice) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} listed more than once")
    return choices


def _known(families: Registry[Any], *, or_none: bool = False) -> Callable[[str], str]:
    """Return a validator of the choices of a kind of part."""

    def check(choice: str) -> str:
        if families.family(choice) is None and not (or_none and choice == _NONE):
            forms = (*([_NONE] if or_none else []), *families.choice_forms)
            raise ValueError(f"found {choice!r}, expected one of {', '.join(forms)}")
        return choice

    return check


def _canonical_input_size(text: str) -> str:
    return str(InputSize.parse(text))


BackboneChoice = Annotated[str, AfterValidator(_known(BACKBONES))]
NeckChoice = Annotated[str, AfterValidator(_known(NECKS, or_none=True))]
RPNChoice = Annotated[str, AfterValidator(_known(RPNS, or_none=True))]
HeadChoice = Annotated[str, AfterValidator(_known(HEADS))]
FPNInputs = Literal["P1-P1", "P1-P2", "P1-P3", "P1-P4", "P2-P2", "P2-P3", "P2-P4", "P3-P3", "P3-P4", "P4-P4"]
Level = Literal["P1", "P2", "P3", "P4", "P5", "P6"]


class StructuralSpace(BaseModel):
    """The search space of stage one: choices for each part of a detector.

    The default is the paper's space of 7 backbones x 4 input sizes x 41 necks x 9 pairs of RPN and head = 10,332
    architectures. With the neck ``none``, as in the original Faster R-CNN, the heads use the backbone's level P3 alone,
    at stride 16: the stride of Ren et al. (2015) and of MMDetection's C4 models.

    Args:
        backbones: Names of published backbones; ``timm:`` with the name of a timm model.
        base_channels: Channels of the first stage of every ResNet, ResNeXt and MobileNetV2; 64 is the published one.
        necks: ``none``, ``FPN``, ``PAFPN``, and ``CSPNeXtPAFPN`` with ``(n=BLOCKS)`` if it has more than one block.
        fpn_inputs: Ranges Pa-Pb of input levels of a neck.
        fpn_last_outputs: Last output levels Pd of a neck; with the inputs Pa-Pb those with d >= b are used.
        fpn_channels: Channels of every output level of a neck.
        rpns: ``none`` for one-stage heads, ``RPN`` and ``GA-RPN`` for all others.
        heads: The one-stage heads ``RetinaNet``, ``FCOS``, ``ATSS``, ``GFL`` and ``RTMDet``; ``2FC``, ``Cascade(n=2)``
            to ``Cascade(n=4)``.
        input_sizes: Sizes ``WIDTHxHEIGHT`` in pixels that images are scaled to fit into.

    Backbones, necks, RPNs and heads of a user's own are listed by their names, too, see ``docs/new_module.md``.

    Raises:
        pydantic.ValidationError: A list is empty or repeats an entry, a name is unknown, or a choice cannot be combined
            with any other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbones: Annotated[tuple[BackboneChoice, ...], Field(min_length=1), AfterValidator(_distinct)] = (
        "ResNet18",
        "ResNet34",
        "ResNet50",
        "ResNet101",
        "ResNeXt50",
        "ResNeXt101",
        "MobileNetV2",
    )
    base_channels: PositiveInt = ClassicBackbone.PUBLISHED_WIDTH
    necks: Annotated[tuple[NeckChoice, ...], Field(min_length=1), AfterValidator(_distinct)] = ("none", "FPN")
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
    rpns: Annotated[tuple[RPNChoice, ...], Field(min_length=1), AfterValidator(_distinct)] = ("none", "RPN", "GA-RPN")
    heads: Annotated[tuple[HeadChoice, ...], Field(min_length=1), AfterValidator(_distinct)] = (
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
        one_stage, two_stage = ", ".join(self._heads(needs_rpn=False)), ", ".join(self._heads(needs_rpn=True))
        if bool(one_stage) != (_NONE in self.rpns):
            heads = one_stage or "one-stage heads such as RetinaNet"
            raise ValueError(f"heads and rpns: the RPN 'none' goes with {heads}, so list both or neither")
        if bool(two_stage) != bool(self._proposing_rpns):
            heads = two_stage or "heads such as 2FC"
            rpns = ", ".join(self._proposing_rpns) or "an RPN"
            raise ValueError(f"heads and rpns: {heads} and {rpns} go together, so list both or neither")
        for choice in self._necks:
            _family(NECKS, choice).count(choice, self)
        return self

    @property
    def _necks(self) -> tuple[str, ...]:
        return tuple(neck for neck in self.necks if neck != _NONE)

    @property
    def _proposing_rpns(self) -> tuple[str, ...]:
        return tuple(rpn for rpn in self.rpns if rpn != _NONE)

    def _heads(self, *, needs_rpn: bool) -> tuple[str, ...]:
        return tuple(head for head in self.heads if needs_rpn == _family(HEADS, head).NEEDS_RPN)

    @property
    def backbone_levels(self) -> tuple[int, ...]:
        """All levels that some architecture takes from its backbone, ascending."""
        levels = {SINGLE_LEVEL} if _NONE in self.necks else set()
        if self._necks:
            levels |= {level for inputs in self.fpn_inputs for level in range(int(inputs[1]), int(inputs[-1]) + 1)}
        return tuple(sorted(levels))

    @property
    def all_backbones(self) -> tuple[Backbone, ...]:
        """All backbones of this space, as far as their choices leave nothing open."""
        fixed = [choice for choice in self.backbones if _family(BACKBONES, choice).count(choice, self) == 1]
        return tuple(map(self.backbone, fixed))

    def backbone(self, choice: str) -> Backbone:
        """Return the backbone of a choice of this space that leaves nothing open."""
        # There is no trial, since there is nothing to ask one for.
        backbone: Backbone = _family(BACKBONES, choice).suggest(choice, None, self)
        return backbone

    def suggest(self, trial: "optuna.trial.BaseTrial") -> Architecture:
        """Let a trial choose an architecture, define-by-run.

        The levels of a pyramid are asked for only when there is one, an RPN only when the head needs one. Each
        parameter has the same choices whenever it is asked for, so any sampler and any storage can handle it.
        """
        backbone = self._suggest("backbone", self.backbones, BACKBONES, trial)
        input_size = trial.suggest_categorical("input_size", self.input_sizes)
        neck = self._suggest("neck", self.necks, NECKS, trial)
        head = self._suggest("head", self.heads, HEADS, trial)
        rpn = self._suggest("rpn", self._proposing_rpns, RPNS, trial) if head.NEEDS_RPN else None
        return Architecture(InputSize.parse(input_size), backbone, neck, rpn, head)

    def _suggest(
        self, name: str, choices: tuple[str, ...], families: Registry[Any], trial: "optuna.trial.BaseTrial"
    ) -> Any:
        choice = trial.suggest_categorical(name, choices)
        return None if choice == _NONE else _family(families, choice).suggest(choice, trial, self)

    def params(self, architecture: Architecture) -> dict[str, Any]:
        """Return the parameters that :meth:`suggest` turns into ``architecture``.

        Raises:
            ValueError: The architecture is not in this space; the message names the part and the choices.
        """
        parts: dict[str, tuple[Part | None, tuple[str, ...]]] = {
            "backbone": (architecture.backbone, self.backbones),
            "neck": (architecture.neck, self.necks),
            "head": (architecture.head, self.heads),
        }
        if architecture.rpn is not None:
            parts["rpn"] = architecture.rpn, self._proposing_rpns
        known: dict[str, tuple[Any, tuple[Any, ...]]] = {"input_size": (str(architecture.input_size), self.input_sizes)}
        for name, (part, choices) in parts.items():
            choice = _NONE if part is None else part.choice
            known[name] = choice, choices
            if part is not None and choice in choices:
                known |= part.params(self)
        for name, (value, allowed) in known.items():
            if value not in allowed:
                raise ValueError(f"{name} {value!r} is not among {', '.join(map(str, allowed))}")
        return {name: value for name, (value, _) in known.items()}

    @property
    def size(self) -> int:
        """Exact number of architectures in this space."""
        backbones = _count(BACKBONES, self.backbones, self)
        necks = (_NONE in self.necks) + _count(NECKS, self._necks, self)
        rpns = _count(RPNS, self._proposing_rpns, self)
        one_stage = _count(HEADS, self._heads(needs_rpn=False), self)
        two_stage = _count(HEADS, self._heads(needs_rpn=True), self)
        return backbones * len(self.input_sizes) * necks * (one_stage + two_stage * rpns)


def _family(families: Registry[Any], choice: str) -> Any:
    family = families.family(choice)
    assert family is not None, choice
    return family


def _count(families: Registry[Any], choices: tuple[str, ...], space: StructuralSpace) -> int:
    return sum(_family(families, choice).count(choice, space) for choice in choices)


def order(architecture: Architecture) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return (group, capacity vector) of an architecture from the structural space.

    x precedes y, "x is no bigger than y", iff their groups are equal and x's vector is componentwise at most y's. That
    is so where y's backbone has the same kind of block and is as deep and wide as x's or more so, and y has no smaller
    input (in either side), a superset of x's input and output levels of the neck, as many or more channels of the neck,
    and as many or more cascade stages (``2FC`` counts as a cascade of one). Different one-stage heads, one-stage and
    two-stage detectors, kinds of RPNs, and kinds of necks are not comparable.

    Raises:
        TypeError: The backbone is a searched one, which only ``CandidateSpace.order`` compares.
    """
    size, neck, rpn = architecture.input_size, architecture.neck, architecture.rpn
    block, depth_and_width = architecture.backbone.place
    pyramid, levels = neck.place if neck else ("one level", ())
    proposing, _ = rpn.place if rpn else ("None", ())
    head, stages = architecture.head.place
    return (block, pyramid, proposing, head), (*depth_and_width, size.width, size.height, *levels, *stages)
