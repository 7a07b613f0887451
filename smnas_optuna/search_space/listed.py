"""A search space that is a list; the stage ``transfer`` trains each of its architectures."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smnas_optuna.parts.architecture import Architecture

if TYPE_CHECKING:
    import optuna  # reading a recipe to build detectors needs no Optuna


@dataclass(frozen=True)
class ListedSpace:
    """A list of architectures, which may grow during a study.

    Args:
        architectures: The architectures, without duplicates.
    """

    architectures: tuple[Architecture, ...]

    def suggest(self, trial: "optuna.trial.BaseTrial") -> Architecture:
        """Suggest an architecture by its index in the list.

        The parameter is an integer, since Optuna allows its range to grow within a study; categories are fixed.
        """
        return self.architectures[trial.suggest_int("architecture", 0, self.size - 1)]

    def params(self, architecture: Architecture) -> dict[str, Any]:
        """Return the parameters that :meth:`suggest` turns into ``architecture``; raises ValueError for another."""
        return {"architecture": self.architectures.index(architecture)}

    @property
    def size(self) -> int:
        """Number of architectures."""
        return len(self.architectures)


def order(architecture: Architecture) -> tuple[str, tuple[int, ...]]:
    """Return (group, capacity vector) that make no two architectures comparable, so that none is pruned."""
    return str(architecture), ()
