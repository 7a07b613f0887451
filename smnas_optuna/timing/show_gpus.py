"""Imported last by the server of processes, which then shows the GPUs to all that are forked from it."""

from smnas_optuna.timing.gpus import show_again

show_again()
