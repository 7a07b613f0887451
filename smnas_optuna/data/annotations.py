"""Annotation files: JSON, read with one-line errors, and what other formats are converted to, kept in the cache."""

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

Content = dict[str, Any]  # of a COCO json file


def read_json(place: str, path: Path, expected: str) -> Any:
    """Return what a JSON file holds.

    Args:
        place: Names the file in messages.
        path: Of the file.
        expected: What it should be, such as ``COCO annotations``.

    Raises:
        UserError: It is missing, cannot be read, or is not JSON.
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
    """Tell whether a value of a JSON file can be taken for a finite float; Python's integers can be larger."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def convert(reader: str, arguments: Iterable[str], sources: Iterable[Path], read: Callable[[], Content]) -> Path:
    """Return a COCO json file in the cache, made unless it is there from the same sources.

    Args:
        reader: Its name and version, which begin the file's name.
        arguments: All else that decides what is read.
        sources: Files that are read; one that has another size or time of change is another source.
        read: Reads them.

    Raises:
        UserError: The cache cannot be written, or whatever ``read`` raises.
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
        # Made aside and renamed into place, so that a run that is killed here leaves nothing half made.
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix="unfinished-", delete=False) as unfinished:
            unfinished.write(json.dumps(content))
        os.replace(unfinished.name, path)
    except OSError as error:
        raise UserError(f"dataset: the annotations cannot be written below {cache_folder()}: {error}") from None
    return path
