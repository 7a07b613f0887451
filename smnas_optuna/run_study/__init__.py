"""``python -m smnas_optuna.run_study``: run a search, or resume one.

``command`` reads the command line and lets torch and MMDetection load in the background; ``stages`` then loads what
else a search needs, and runs it. So a search begins to train about as soon as torch is there.
"""

from smnas_optuna.run_study.command import run_study

__all__ = ["run_study"]
