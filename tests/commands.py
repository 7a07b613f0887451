"""The package's commands, run as a user runs them: in a process of their own, in a folder of its own."""

import subprocess
import sys
from pathlib import Path


def run(module: str, *arguments: object, folder: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run ``python -m smnas_optuna.<module>`` to its end."""
    return subprocess.run(
        command(module, *arguments), cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
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
