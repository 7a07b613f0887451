"""Imported first by the server of training processes: all that a training needs, in half of the time.

Imports make hundreds of thousands of objects and no garbage, for which Python's collector searches them again and
again. It is switched off meanwhile, and later leaves alone what is there now, so that forked processes share it.
"""

import gc
import sys

# MMDetection imports these where they are installed: for tracking in videos and PAA, for sharded optimizers, for plots.
_NEEDLESS = ("sklearn", "torch.distributed.optim", "seaborn", "motmetrics")

gc.disable()
_blocked = [name for name in _NEEDLESS if name not in sys.modules]
try:
    for _name in _blocked:
        sys.modules[_name] = None  # type: ignore[assignment]  # so that an import raises ImportError
    import smnas_optuna.training.training  # noqa: F401
finally:
    for _name in _blocked:
        del sys.modules[_name]
    gc.freeze()
    gc.enable()
