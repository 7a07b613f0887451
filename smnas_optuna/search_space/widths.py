"""Search space of stage two for candidates whose backbone has no code: the widths of neck and head."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from smnas_optuna.parts.architecture import Architecture

if TYPE_CHECKING:
    import optuna  # reading a recipe to build detectors needs no Optuna


@dataclass(frozen=True)
class WidthSpace:
    """The architectures that differ from one candidate in the widths of neck and head only.

    Args:
        candidate: The architecture from stage one; it has a neck, or a head whose width can be changed.
        fpn_channels: Choices of the channels of its neck.
        head_widths: Choices of the width of its head, relative to the published one.

    Raises:
        ValueError: The candidate has no width that could be searched.
    """

    candidate: Architecture
    fpn_channels: tuple[int, ...]
    head_widths: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self._choices:
            raise ValueError(f"candidate {self.candidate}: has no width that could be searched")

    @property
    def _choices(self) -> dict[str, tuple[Any, ...]]:
        """The choices of each parameter."""
        choices: dict[str, tuple[Any, ...]] = {}
        if self.candidate.neck is not None:
            choices["fpn_channels"] = self.fpn_channels
        if self.candidate.head.with_width(1.0) is not None:
            choices["head_width"] = self.head_widths
        return choices

    def suggest(self, trial: "optuna.trial.BaseTrial") -> Architecture:
        """Suggest an architecture; every combination of parameter values is valid."""
        return self._with({name: trial.suggest_categorical(name, values) for name, values in self._choices.items()})

    def _with(self, widths: dict[str, Any]) -> Architecture:
        neck, head = self.candidate.neck, self.candidate.head
        if neck is not None:
            neck = replace(neck, channels=widths["fpn_channels"])
        return replace(self.candidate, neck=neck, head=head.with_width(widths.get("head_width", 1.0)) or head)

    def params(self, architecture: Architecture) -> dict[str, Any]:
        """Return the parameters that :meth:`suggest` turns into ``architecture``.

        Raises:
            ValueError: The architecture is not in this space; the message says what is the candidate's or what the
                choices are.
        """
        found = {
            "fpn_channels": architecture.neck.channels if architecture.neck else None,
            "head_width": getattr(architecture.head, "width", None),
        }
        widths = {name: found[name] for name in self._choices}
        for name, values in self._choices.items():
            if widths[name] not in values:
                raise ValueError(f"{name} {widths[name]} is not among {', '.join(map(str, values))}")
        if self._with(widths) != architecture:
            raise ValueError(f"{architecture} differs from the candidate in more than the widths of neck and head")
        return widths

    @property
    def size(self) -> int:
        """Exact number of architectures in this space."""
        size = 1
        for values in self._choices.values():
            size *= len(values)
        return size

    @property
    def baseline(self) -> Architecture:
        """The candidate itself."""
        return self.candidate

    @property
    def published_starts(self) -> tuple[Architecture, ...]:
        """Nothing: the paper has searched backbones only."""
        return ()

    def order(self, architecture: Architecture) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Return (group, capacity vector) of an architecture from this space: wider necks and heads are bigger.

        Raises:
            ValueError: The architecture is not in this space.
        """
        self.params(architecture)
        neck, head = architecture.neck, architecture.head
        _, capacity = head.place
        return (str(architecture.backbone),), (neck.channels if neck else 0, *capacity)
