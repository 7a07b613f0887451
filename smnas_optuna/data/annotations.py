"""Reads annotation files with one-line errors, and caches annotations that are converted from other formats."""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from smnas_optuna.data.cache import cache_folder
from smnas_optuna.errors import UserError

Content = dict[str, Any]  # the content of a COCO JSON file


def read_json(place: str, path: Path, expected: str) -> Any:
    """Return the content of a JSON file.

    Args:
        place: Name of the file at the beginning of error messages.
        path: Path of the file.
        expected: What the file should contain, such as ``COCO annotations``, for error messages.

    Raises:
        UserError: The file is missing, cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{place}: no such file") from None
    except OSError as error:
        raise UserError(f"{place}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{place}: not JSON, so not {expected}: {error}") from None


def is_number(value: Any) -> bool:
    """Return whether a value of a JSON file can be converted to a finite float; Python's integers can be larger."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def convert(reader: str, arguments: Iterable[str], sources: Iterable[Path], read: Callable[[], Content]) -> Path:
    """Convert annotations to a COCO JSON file in the cache, unless the cache has them already, and return its path.

    Args:
        reader: Name and version of the format's reader; the file's name begins with it.
        arguments: Everything besides ``sources`` that the result depends on.
        sources: Files that are read; after a change of size or modification time they are converted again.
        read: Reads the sources and returns the content of the JSON file.

    Raises:
        UserError: The cache cannot be written, or ``read`` raises it.
        FileNotFoundError: A source is missing.
    """
    digest = hashlib.sha256("\0".join(arguments).encode())
    for source in sources:
        state = os.stat(source)
        digest.update(f"\0{source} {state.st_size} {state.st_mtime_ns}".encode())
    path = cache_folder() / f"{reader}-{digest.hexdigest()[:16]}.json"
    if path.is_file():
        return path
    content = read()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when complete, so that a run that is killed here leaves no incomplete file in the cache.
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix="unfinished-", delete=False) as unfinished:
            unfinished.write(json.dumps(content))
        os.replace(unfinished.name, path)
    except OSError as error:
        raise UserError(f"dataset: the annotations cannot be written below {cache_folder()}: {error}") from None
    return path
