"""What every part of a detector has: a text, and a place in the partial order."""

from abc import ABC, abstractmethod
from typing import Any

# A piece of an MMDetection config.
Config = dict[str, Any]

# Regular expression of a positive number in a text.
INTEGER = r"[1-9]\d*"


class Part(ABC):
    """A backbone, neck, RPN or head. Families of them are frozen dataclasses; ``str`` is the canonical text."""

    @abstractmethod
    def __str__(self) -> str:
        """Return the canonical text."""

    @property
    @abstractmethod
    def place(self) -> tuple[str, tuple[int, ...]]:
        """Place in the partial order of the structural space: the kind, and the capacity.

        Of two parts of one kind, one is no bigger than the other iff each of its numbers is at most the other's.
        """
