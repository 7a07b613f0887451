"""The package's commands, run as a user runs them: in a folder of their own, in this process or in one of their own."""

import contextlib
import gc
import io
import os
import runpy
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path


def run(module: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``python -m smnas_optuna.<module>`` to its end in this process, which has loaded what it needs before."""
    command_line = command(module, *arguments)
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        _as_if_started(folder, command_line[2:]),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            # It may have been imported as well, which does not matter.
            warnings.filterwarnings("ignore", ".* found in sys.modules after import", RuntimeWarning)
            runpy.run_module(f"smnas_optuna.{module}", run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            code = ended.code
        except Exception:
            traceback.print_exc()
            code = 1
    assert isinstance(code, int)
    return subprocess.CompletedProcess(command_line, code, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def _as_if_started(folder: Path, argv: list[str]) -> Iterator[None]:
    """Let this process look as if Python had been started in a folder, and put it back as it was."""
    before = sys.argv, list(sys.path), os.getcwd()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        os.chdir(folder)
        sys.argv = argv
        sys.path.insert(0, str(folder))
        yield
    finally:
        sys.argv, sys.path[:], working = before
        os.chdir(working)
        gc.enable()  # which check_data does without
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run_alone(module: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``python -m smnas_optuna.<module>`` to its end in a process of its own."""
    return subprocess.run(
        command(module, *arguments), cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


def command(module: str, *arguments: object) -> list[str]:
    """Return the command line of a module of the package."""
    return [sys.executable, "-m", f"smnas_optuna.{module}", *map(str, arguments)]


def torchrun(
    processes: int, module: str, *arguments: object, folder: Path, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a module of the package to its end in several processes under torch's launcher."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*launcher, *command(module, *arguments)[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
