"""Writing files of weights: a file is complete or absent, and a full disk raises an OSError."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import torch


def write_weights(content: dict[str, Any], file: Path) -> None:
    """Write weights that ``torch.load`` can read with ``weights_only=True``.

    ``torch.save`` reports a full disk as a RuntimeError, and leaves an incomplete file.

    Args:
        content: A dictionary with ``state_dict`` and ``meta``.
        file: Path of the file, in an existing folder. An existing file is replaced when the new one is complete.

    Raises:
        OSError: The file cannot be written, such as on a full disk.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    partial = file.with_name(f"{file.name}.partial")
    try:
        with open(partial, "wb") as written:
            written.write(buffer.getbuffer())
            written.flush()
            # Only now a network file system reports an exceeded quota.
            os.fsync(written.fileno())
        os.replace(partial, file)
    except OSError as error:
        error.filename = error.filename or str(file)
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
