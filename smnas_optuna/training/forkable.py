"""Imported last by the server that training processes are forked from.

Makes the GPUs visible to these processes, and freezes all objects that exist: the garbage collector ignores them, so
the processes share their memory and look through their own objects only. MMEngine has it look for each data set.
"""

import gc

from smnas_optuna.timing.gpus import show_again

show_again()
gc.freeze()
gc.enable()
