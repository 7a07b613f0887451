"""What ``python -m smnas_optuna.run_study`` calls; other processes never load it again, since it is a ``__main__``."""

from smnas_optuna.command_line import run_command
from smnas_optuna.run_study import run_study

run_command(run_study, "run_study")
