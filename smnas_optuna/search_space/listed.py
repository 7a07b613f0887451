"""A space that is a list: the stage ``transfer`` trains each of its architectures."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smnas_optuna.parts.architecture import Architecture

if TYPE_CHECKING:
    import optuna  # what reads a recipe to build detectors needs none


@dataclass(frozen=True)
class ListedSpace:
    """Architectures by their places in a list, which may grow while a study goes on.

    Args:
        architectures: All different.
    """

    architectures: tuple[Architecture, ...]

    def suggest(self, trial: "optuna.trial.BaseTrial") -> Architecture:
        """Let a trial choose a place in the list, from 0.

        An integer, since Optuna lets its range grow within a study; the choices of a category it does not.
        """
        return self.architectures[trial.suggest_int("architecture", 0, self.size - 1)]

    def params(self, architecture: Architecture) -> dict[str, Any]:
        """Return the parameters with which :meth:`suggest` gives ``architecture``; raises ValueError for another."""
        return {"architecture": self.architectures.index(architecture)}

    @property
    def size(self) -> int:
        """Number of architectures."""
        return len(self.architectures)


def order(architecture: Architecture) -> tuple[str, tuple[int, ...]]:
    """Return (group, capacity vector) with which no architecture precedes another: each is trained, whatever it is."""
    return str(architecture), ()
