"""Imported last by the server that forks training processes, to make the GPUs visible to them."""

from smnas_optuna.timing.gpus import show_again

show_again()
