"""Base class of all parts of a detector, and the registries in which their families are found.

A family of parts is a class, such as ``ResNet`` or ``RCNNHead``; a part is an instance. Each family is one file, which
registers it with a class decorator::

    @register_head
    @dataclass(frozen=True)
    class RetinaNetHead(Head):
        ...

The families of this package and those of a user's own modules register in the same way. Recipes, search spaces,
detectors and reports look parts up in the registries.
"""

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from smnas_optuna.parts.optimization import Optimization

if TYPE_CHECKING:
    import optuna  # building detectors needs no Optuna
    from typing_extensions import Self  # in typing since Python 3.11

    from smnas_optuna.parts.architecture import Architecture

# A piece of an MMDetection config.
Config = dict[str, Any]

# Regular expression of a positive integer in a text.
INTEGER = r"[1-9]\d*"


class Choices(Protocol):
    """What a search space lets the parts of its detectors choose from; see ``StructuralSpace``."""

    @property
    def base_channels(self) -> int:
        """Channels of the first stage of every backbone whose width can be scaled."""

    @property
    def fpn_inputs(self) -> tuple[str, ...]:
        """Ranges ``Pa-Pb`` of input levels of a neck."""

    @property
    def fpn_last_outputs(self) -> tuple[str, ...]:
        """Last output levels ``Pd`` of a neck."""

    @property
    def fpn_channels(self) -> int:
        """Channels of every output level of a neck."""


class Part(ABC):
    """A backbone, neck, RPN or head; a frozen dataclass whose ``str`` is the canonical text.

    A recipe lists *choices*, each of which means one part, or several among which a trial chooses further: ``2FC`` is
    one head, ``FPN`` is all feature pyramids with the levels of the space. A family whose choices leave nothing open
    needs no more than texts, place and config; another one overrides :meth:`choice`, :meth:`offers`, :meth:`suggest`,
    :meth:`params` and :meth:`count`.
    """

    # What texts of this family look like, for error messages: ``("2FC", "Cascade(n=2)")``.
    FORMS: ClassVar[tuple[str, ...]]
    # The same for choices; None if they look the same.
    CHOICE_FORMS: ClassVar[tuple[str, ...] | None] = None
    # How detectors with parts of this family were published to be trained; nothing if it makes no difference.
    OPTIMIZATION: ClassVar[Optimization] = Optimization()

    @abstractmethod
    def __str__(self) -> str:
        """Return the canonical text, which has no spaces."""

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> "Self | None":
        """Parse a text without spaces.

        Returns:
            The part; None if the text is of another family.

        Raises:
            ValueError: The text is one of this family, but wrong.
        """

    @classmethod
    def compact(cls, text: str) -> str:
        """Remove spaces within texts of this family, as published tables have them, from an architecture's text."""
        return text

    @property
    @abstractmethod
    def place(self) -> tuple[str, tuple[int, ...]]:
        """Place in the partial order of the structural space: (kind, capacity).

        A part is no bigger than another one iff both are of the same kind and each entry of its capacity is at most
        the other's.
        """

    def conflict(self, architecture: "Architecture") -> str | None:
        """Say why this part does not fit the others of an architecture; None if it does."""
        return None

    @property
    def choice(self) -> str:
        """The choice of a recipe from which a trial gets this part."""
        return str(self)

    @classmethod
    def offers(cls, choice: str) -> bool:
        """Return whether a recipe's choice is one of this family."""
        return cls.parse(choice) is not None

    @classmethod
    def suggest(cls, choice: str, trial: "optuna.trial.BaseTrial", space: Choices) -> "Self":
        """Let a trial choose what a choice leaves open, define-by-run.

        Each parameter must have the same distribution whenever it is asked for.

        Args:
            choice: A choice of this family.
            trial: The trial.
            space: What parts may choose from.
        """
        part = cls.parse(choice)
        assert part is not None
        return part

    def params(self, space: Choices) -> dict[str, tuple[Any, tuple[Any, ...]]]:
        """Return the parameters with which :meth:`suggest` returns this part from its :attr:`choice`.

        Args:
            space: What parts may choose from.

        Returns:
            Pairs by the parameters' names, of the value and the values that it may have; the space compares these.

        Raises:
            ValueError: No parameters of this space give this part.
        """
        return {}

    @classmethod
    def count(cls, choice: str, space: Choices) -> int:
        """Return the exact number of parts that :meth:`suggest` may return; raises ValueError if there is none."""
        return 1


class NamedPart(Part):
    """A part without arguments in its text: a subclass that is registered has a ``NAME``, and no fields."""

    NAME: ClassVar[str]

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if "NAME" in vars(cls):
            cls.FORMS = (cls.NAME,)

    def __str__(self) -> str:
        return self.NAME

    @classmethod
    def parse(cls, text: str) -> "Self | None":
        """Parse ``NAME``; None for any other text."""
        return cls() if text == cls.NAME else None

    @property
    def place(self) -> tuple[str, tuple[int, ...]]:
        """All parts of one name are equal, and others not comparable with them."""
        return self.NAME, ()


_P = TypeVar("_P", bound=Part)
_F = TypeVar("_F", bound=Part)


class Registry(Generic[_P]):
    """The families of one kind of part.

    Args:
        kind: What the parts are, for error messages: ``backbone``, ``neck``, ``RPN`` or ``head``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._families: dict[str, Any] = {}

    def register(self, family: type[_F]) -> type[_F]:
        """Register a family; a class decorator.

        Args:
            family: The class. The names in its ``FORMS`` consist of letters, digits and ``-._:``, with arguments in
                parentheses.

        Raises:
            ValueError: A name has other characters, or another family has it already.
        """
        path = f"{family.__module__}.{family.__qualname__}"
        for form in family.FORMS:
            if not re.fullmatch(r"[A-Za-z0-9][\w.:-]*(\(\S*\))?", form):
                raise ValueError(f"{self.kind} {form!r}: expected a name of letters, digits and '-'")
        for known, other in self._families.items():
            shared = _names(other) & _names(family)
            # The same class again: its module was imported twice.
            if shared and known != path:
                raise ValueError(f"{self.kind} {min(shared)!r}: {known} has this name already")
        self._families[path] = family
        return family

    @property
    def families(self) -> tuple[type[_P], ...]:
        """All families, in the order in which they were registered."""
        return tuple(self._families.values())

    def parse(self, text: str) -> _P:
        """Parse a text; raises ValueError that says what was expected."""
        compact = re.sub(r"\s", "", self.compact(text))
        for family in self.families:
            part = family.parse(compact)
            if part is not None:
                return part
        forms = [form for family in self.families for form in family.FORMS]
        expected = f"one of {', '.join(forms)}" if len(forms) > 2 else " or ".join(forms)
        raise ValueError(f"{self.kind} {text!r}: expected {expected}")

    def family(self, choice: str) -> type[_P] | None:
        """Return the family of a recipe's choice; None if there is none."""
        return next((family for family in self.families if family.offers(choice)), None)

    @property
    def choice_forms(self) -> tuple[str, ...]:
        """What the choices of all families look like, for error messages."""
        pairs = [(family.FORMS, family.CHOICE_FORMS) for family in self.families]
        return tuple(form for forms, choices in pairs for form in (forms if choices is None else choices))

    def compact(self, text: str) -> str:
        """Remove spaces within texts of all families from an architecture's text; see :meth:`Part.compact`."""
        for family in self.families:
            text = family.compact(text)
        return text


def _names(family: type[Part]) -> set[str]:
    return {form.partition("(")[0] for form in family.FORMS}
