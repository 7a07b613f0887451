"""Files of weights: complete or absent, and an error of the file system stays one."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import torch


def write_weights(content: dict[str, Any], file: Path) -> None:
    """Write tensors with what describes them, to be read by ``torch.load`` with ``weights_only=True``.

    torch itself would report a full disk as a RuntimeError that looks like any other, and leave half a file.

    Args:
        content: ``state_dict`` and ``meta``.
        file: Where to; its folder exists. What is there already is replaced once the new file is complete.

    Raises:
        OSError: It cannot be written, as on a full disk.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    partial = file.with_name(f"{file.name}.partial")
    try:
        with open(partial, "wb") as written:
            written.write(buffer.getbuffer())
            written.flush()
            # A network file system tells of an exceeded quota only now.
            os.fsync(written.fileno())
        os.replace(partial, file)
    except OSError as error:
        error.filename = error.filename or str(file)
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
