"""The files of a data folder, listed once."""

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from smnas_optuna.errors import UserError

# What OpenCV reads, which loads the images in training.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jp2", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
_IGNORED_FOLDERS = ("__MACOSX",)


@dataclass(frozen=True)
class FolderFiles:
    """The files below a folder. Hidden files and folders are ignored; links to folders are followed.

    Args:
        root: The folder.
        names: Paths of the files relative to it, sorted, with ``/`` on all systems.
    """

    root: Path
    names: tuple[str, ...]

    @classmethod
    def below(cls, root: Path) -> "FolderFiles":
        """List the files below a folder.

        Raises:
            UserError: A folder cannot be read.
        """
        return cls(root, tuple(sorted(_walk(root))))

    @cached_property
    def images(self) -> tuple[str, ...]:
        """The images, by their suffixes."""
        return self.with_suffix(*IMAGE_SUFFIXES)

    @cached_property
    def images_by_name(self) -> dict[str, list[str]]:
        """The images by their names without folders."""
        found = defaultdict(list)
        for name in self.images:
            found[PurePosixPath(name).name].append(name)
        return found

    @cached_property
    def images_by_stem(self) -> dict[str, list[str]]:
        """The images by their names without folders and suffix."""
        found = defaultdict(list)
        for name in self.images:
            found[PurePosixPath(name).stem].append(name)
        return found

    def with_suffix(self, *suffixes: str) -> tuple[str, ...]:
        """Return the files with one of these suffixes, in lower or upper case."""
        return tuple(name for name in self.names if name.lower().endswith(suffixes))

    @cached_property
    def _documents(self) -> dict[str, Any]:
        return {}

    def json_of(self, name: str) -> Any:
        """Return the content of a json file, which is read once; None if it cannot be read or is not JSON."""
        if name not in self._documents:
            try:
                self._documents[name] = json.loads((self.root / name).read_bytes())
            except (OSError, ValueError):
                self._documents[name] = None
        return self._documents[name]


def _walk(root: Path) -> Iterator[str]:
    seen = set()

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}")

    for folder, folders, names in os.walk(root, followlinks=True, onerror=fail):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _IGNORED_FOLDERS]
        relative = PurePosixPath(Path(folder).relative_to(root).as_posix())
        yield from (str(relative / name) for name in names if not name.startswith("."))
