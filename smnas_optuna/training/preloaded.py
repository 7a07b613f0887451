"""Preloaded by the server that training processes are forked from: imports everything that a training needs.

Imports create hundreds of thousands of objects but no garbage, so Python's garbage collector is disabled from here on,
which halves the time. ``forkable.py`` enables it again.
"""

import gc
import sys

# MMDetection imports these if they are installed, for video tracking, PAA, sharded optimizers and plots; no training
# here needs them.
_NOT_NEEDED = ("sklearn", "torch.distributed.optim", "seaborn", "motmetrics")

gc.disable()
_blocked = [name for name in _NOT_NEEDED if name not in sys.modules]
try:
    for _name in _blocked:
        sys.modules[_name] = None  # type: ignore[assignment]  # so that an import raises ImportError
    import smnas_optuna.training.training  # noqa: F401
finally:
    for _name in _blocked:
        del sys.modules[_name]
