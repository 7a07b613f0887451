"""Studies and trials in their database: opening, locking, leases, outcomes and retries. Does not import torch."""

from smnas_optuna.study.study import load_study, relatives_of

__all__ = ["load_study", "relatives_of"]
