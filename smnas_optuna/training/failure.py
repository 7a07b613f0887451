"""What an error, or the sudden end of a training process, says of the architecture: the Failure of its trial.

Only failures that the architecture itself causes count; any other is an interruption, and the trial is repeated.
"""

import errno
import os
import signal
from pathlib import Path

from smnas_optuna.errors import EvaluationInterrupted
from smnas_optuna.training.job import Failure
from smnas_optuna.training.outcome import Outcome

# Errors with which any other architecture would have failed as well: a disk is full or broken, a quota or a size limit
# is exceeded, or a file system is read-only or was unmounted.
_ENVIRONMENT_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ENODEV,
}


# Texts, in lower case, by which errors of Python, torch, cuBLAS, cuDNN and NCCL are recognised as out of memory.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "status_alloc_failed",
    "allocation_failed",
    "error_out_of_memory",
)


def failure_of(error: BaseException, folder: Path) -> Failure:
    """Return the Failure for an error that ended an evaluation.

    Args:
        error: The error.
        folder: Folder that the evaluation writes to. If it no longer exists, the architecture is not at fault.
    """
    if isinstance(error, FloatingPointError):
        return Failure(_one_line(error), Outcome.DIVERGED)
    if isinstance(error, EvaluationInterrupted):
        return Failure(_one_line(error), Outcome.INTERRUPTED)
    environment = _environment_error(error)
    if environment is not None:
        return Failure(f"{type(environment).__name__}: {_one_line(environment)}", Outcome.INTERRUPTED)
    if _is_out_of_memory(error):
        return Failure(f"out of memory: {_one_line(error)}", Outcome.OUT_OF_MEMORY)
    if _is_gpu_fault(error):
        return Failure(f"{type(error).__name__}: {_one_line(error)}", Outcome.INTERRUPTED)
    reason = f"{type(error).__name__}: {_one_line(error)}"
    if not os.path.isdir(folder):
        return Failure(f"{folder} no longer exists: {reason}", Outcome.INTERRUPTED)
    return Failure(reason)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _environment_error(error: BaseException | None) -> OSError | None:
    """Return the error of a file system or device that caused an error; None if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _ENVIRONMENT_ERRORS:
            return error
        error = error.__cause__ or error.__context__
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    text = str(error).lower()
    return any(words in text for words in _OUT_OF_MEMORY)


def _is_gpu_fault(error: BaseException) -> bool:
    """Return whether a GPU, its driver or the connection between GPUs has failed, and not an assertion in a kernel."""
    # Compares names, since this module does not import torch.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"AcceleratorError", "DistBackendError"}) and "device-side assert" not in str(error)


def failure_of_exit(exit_code: int | None, out_of_memory: bool) -> Failure:
    """Return the Failure for a training process that ended without one.

    Args:
        exit_code: Its exit code; negative for a signal, as multiprocessing has it.
        out_of_memory: Whether the kernel has killed a process for want of memory meanwhile.
    """
    if exit_code == -signal.SIGKILL and out_of_memory:
        return Failure("out of memory: the system killed the training process", Outcome.OUT_OF_MEMORY)
    if exit_code is not None and exit_code < 0:
        return Failure(f"crashed: the training process got {signal.Signals(-exit_code).name}")
    return Failure(f"crashed: the training process ended with exit code {exit_code}")
