"""Where data are kept that the package makes itself."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder for data made by the package: ``$SMNAS_CACHE``, else below ``$XDG_CACHE_HOME`` or ~/.cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smnas_optuna"
    return Path(os.environ.get("SMNAS_CACHE") or default)
