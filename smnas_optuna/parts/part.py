"""Base class of all parts of a detector: a canonical text, and a place in the partial order."""

from abc import ABC, abstractmethod
from typing import Any

# A piece of an MMDetection config.
Config = dict[str, Any]

# Regular expression of a positive integer in a text.
INTEGER = r"[1-9]\d*"


class Part(ABC):
    """A backbone, neck, RPN or head; a frozen dataclass whose ``str`` is the canonical text."""

    @abstractmethod
    def __str__(self) -> str:
        """Return the canonical text."""

    @property
    @abstractmethod
    def place(self) -> tuple[str, tuple[int, ...]]:
        """Place in the partial order of the structural space: (kind, capacity).

        A part is no bigger than another one iff both are of the same kind and each entry of its capacity is at most
        the other's.
        """
