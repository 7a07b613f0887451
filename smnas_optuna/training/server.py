"""The server that processes are forked from: it has loaded torch and MMDetection once, so they do not wait for imports.

A process that was forked from the server can have the same server fork its own processes, so several workers on a
machine share one. This module does not import torch.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from typing import Any

from smnas_optuna.errors import UserError
from smnas_optuna.timing import gpus

context = multiprocessing.get_context("forkserver")

_PRELOADED = "smnas_optuna.training.preloaded"
_FORKABLE = "smnas_optuna.training.forkable"

# Python has no public way to pass a server on to the processes that it forks; this was checked with 3.10 to 3.13.
_server: Any = forkserver._forkserver


def preload(*modules: str) -> None:
    """Start the server, which imports torch, MMDetection and what this process has imported, while the caller goes on.

    Args:
        modules: Modules that it shall import as well.
    """
    if "ensure_running" in vars(_server):
        return  # this process shares the server of the one that started it
    # Otherwise torch's threads spin while they wait, and threads of the forward and backward pass take the cores from
    # each other: a small network trained 15 times slower on 2 cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A forked process imports the main module again, which is quick if the server has imported its dependencies.
    main = getattr(sys.modules["__main__"].__spec__, "name", None)
    loaded = [name for name in sys.modules if name.startswith("smnas_optuna.") and name != main]
    context.set_forkserver_preload([_PRELOADED, *loaded, *modules, _FORKABLE])
    # Only the process that the user started reacts to Ctrl-C; the server must not, even while it is importing.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries check for GPUs when they are imported. If they used CUDA itself for that, no process that is forked from
    # the server could use CUDA. So they shall use NVML; as NVML does not know parts of a GPU (MIG), GPUs are hidden.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    try:
        with gpus.hidden():
            _server.ensure_running()
    except OSError as error:
        if "path too long" not in str(error):
            raise
        raise UserError(f"TMPDIR {tempfile.gettempdir()}: {error}; expected a folder with a shorter name") from None
    finally:
        signal.signal(signal.SIGINT, handler)


def sharing(target: Callable[..., None], *arguments: object, name: str | None = None) -> BaseProcess:
    """Return a process, not started yet, that calls a function and shares this process's server.

    Args:
        target: The function.
        arguments: Its arguments.
        name: Name of the process.
    """
    _server.ensure_running()
    address = _server._forkserver_address
    return context.Process(target=_share, args=(address, target, arguments), name=name)


def _share(address: str, target: Callable[..., None], arguments: tuple[object, ...]) -> None:
    """Call a function in a process that has just been forked from the server with an address."""
    server = os.getppid()

    def ensure_running() -> None:
        if os.getppid() != server:
            # It has died, so start another one, as if there had been none.
            del _server.ensure_running
            _server.ensure_running()

    # The server has set the other attributes of this object.
    _server._forkserver_address = address
    _server.ensure_running = ensure_running
    target(*arguments)


def follow_parent() -> None:
    """Make this process ignore Ctrl-C in the terminal, and end it and its children when its parent ends."""
    os.setsid()
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(os.getpid(), signal.SIGKILL)
