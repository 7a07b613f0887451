"""The folder of generated and converted data."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return ``$SMNAS_CACHE`` if set, else the folder ``smnas_optuna`` in ``$XDG_CACHE_HOME`` or in ``~/.cache``."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smnas_optuna"
    return Path(os.environ.get("SMNAS_CACHE") or default)
