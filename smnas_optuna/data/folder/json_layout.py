"""What the layouts with a json file for each part have in common."""

from dataclasses import dataclass
from typing import Final

from smnas_optuna.data.folder.layout import LabelFiles, PartName

ABSENT: Final = "listed images that are absent"


@dataclass(frozen=True)
class JsonLayout(LabelFiles):
    """A folder with a json file of labels for each part; see :class:`~smnas_optuna.data.folder.layout.Layout`.

    Args:
        files: The folder's files.
        annotations: The json file of each part, relative to the folder.
    """

    annotations: dict[PartName, str]

    @property
    def reason(self) -> str:
        """By what it was recognised."""
        return ", ".join(self.annotations.values())

    def place(self, part: PartName) -> str:
        """Say where the labels of a part come from."""
        return self.annotations[part]
