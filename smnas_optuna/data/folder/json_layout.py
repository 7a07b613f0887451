"""What the layouts with a json file for each part have in common."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from smnas_optuna.data.folder.files import FolderFiles
from smnas_optuna.data.folder.layout import PartName

ABSENT: Final = "listed images that are absent"


@dataclass(frozen=True)
class JsonLayout:
    """A folder with a json file of labels for each part; see :class:`~smnas_optuna.data.folder.layout.Layout`.

    Args:
        files: The folder's files.
        annotations: The json file of each part, relative to the folder.
    """

    files: FolderFiles
    annotations: dict[PartName, str]

    @property
    def reason(self) -> str:
        """By what it was recognised."""
        return ", ".join(self.annotations.values())

    @property
    def images(self) -> Path:
        """The folder itself."""
        return self.files.root

    @property
    def parts(self) -> tuple[PartName, ...]:
        """The parts that the folder has."""
        return tuple(self.annotations)

    def place(self, part: PartName) -> str:
        """Say where the labels of a part come from."""
        return self.annotations[part]
