"""Studies in their database: opened, locked, leased, and what became of their trials; knows no torch."""

from smnas_optuna.study.study import load_study, relatives_of

__all__ = ["load_study", "relatives_of"]
