"""The package's commands, run as a user runs them: in a folder of their own, in this process or in one of their own."""

import contextlib
import gc
import io
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from smnas_optuna.training.server import context, preload, sharing


def run(module: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``python -m smnas_optuna.<module>`` to its end in this process, which has loaded what it needs before.

    Trainings run in a process of their own: garbage collection ends those of their data loaders, and waits five seconds
    for each.
    """
    command_line = command(module, *arguments)
    if module in ("train", "pretrain"):
        with Started(module, *arguments, folder=folder, environment=dict(os.environ)) as training:
            return subprocess.CompletedProcess(command_line, *training.communicate())
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        _as_if_started(folder, command_line[2:]),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            _run_as_main(module)
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


class Started:
    """A command in a process of its own, which is forked from the server of this process and so need not import.

    Args:
        arguments: Module of the package, and its arguments.
        folder: Working folder.
        environment: Environment variables that are set for it.
    """

    def __init__(self, *arguments: object, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        preload()
        self._before = set(training_server().children())
        outputs = [context.Pipe(duplex=False) for _ in range(2)]
        command_line, senders = [str(each) for each in arguments], [sender for _, sender in outputs]
        self._process = sharing(_run_started, folder, command_line, environment or {}, *senders)
        self._process.start()
        for sender in senders:
            sender.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(receiver.fileno()), encoding="utf-8") for receiver, _ in outputs)

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self.stderr.close()
        self._process.join()

    def send_signal(self, number: int) -> None:
        """Send a signal to the command's process alone."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def trainings(self) -> list[psutil.Process]:
        """Return the processes that the command has had forked, and theirs."""
        children = training_server().children()
        forked = [each for each in children if each not in self._before and each.pid != self._process.pid]
        return forked + [child for each in forked for child in each.children(recursive=True)]

    def kill(self) -> None:
        """Kill the command's process with SIGKILL; fails if what it has had forked outlives it."""
        trainings = self.trainings()
        self.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(trainings, timeout=60)
        assert not alive, f"outlived the command that started it: {alive}"

    def communicate(self) -> tuple[int, str, str]:
        """Wait until the command has ended, and return its exit code and what it has written to stdout and stderr."""
        with ThreadPoolExecutor() as reader:
            stderr = reader.submit(self.stderr.read)
            stdout = self.stdout.read()
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode, stdout, stderr.result()

    def wait(self, timeout: float) -> int | None:
        """Wait until the command has ended, and return its exit code; None if it has not within the seconds."""
        self._process.join(timeout)
        return self._process.exitcode

    @property
    def is_running(self) -> bool:
        """Whether the command has not ended."""
        return self._process.is_alive()


def training_server() -> psutil.Process:
    """Return the server that this process has its trainings forked from, see ``preload()``."""
    return psutil.Process(forkserver._forkserver._forkserver_pid)  # type: ignore[attr-defined]  # no public way to ask


def _run_started(folder: Path, arguments: Sequence[str], environment: Mapping[str, str], *outputs: Connection) -> None:
    os.environ.update(environment)
    for number, output in enumerate(outputs, start=1):
        os.dup2(output.fileno(), number)
        output.close()
    # The server ignores it, and so would this process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    module, sys.argv[1:] = arguments[0], arguments[1:]
    sys.path.insert(0, str(folder))
    _run_as_main(module)


def _run_as_main(module: str) -> None:
    # It may have been imported as well, which does not matter.
    warnings.filterwarnings("ignore", ".* found in sys.modules after import", RuntimeWarning)
    runpy.run_module(f"smnas_optuna.{module}", run_name="__main__", alter_sys=True)


def command(module: str, *arguments: object) -> list[str]:
    """Return the command line of a module of the package."""
    return [sys.executable, "-m", f"smnas_optuna.{module}", *map(str, arguments)]


def run_ranks(processes: int, *arguments: object, folder: Path) -> list[tuple[int, str, str]]:
    """Run a command in several processes as torch's launcher does, whose processes would need seconds for imports.

    Returns each process's exit code, and what it has written to stdout and stderr.
    """
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_PORT": str(free_port())}
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(processes) as readers:
        ranks = []
        for number in map(str, range(processes)):
            environment = {**shared, "MASTER_ADDR": "127.0.0.1", "RANK": number, "LOCAL_RANK": number}
            ranks.append(stack.enter_context(Started(*arguments, folder=folder, environment=environment)))
        results = [readers.submit(rank.communicate) for rank in ranks]
        # When one has failed, the launcher ends the others.
        if any(result.result()[0] for result in wait(results, return_when=FIRST_COMPLETED).done):
            for rank in ranks:
                if rank.is_running:
                    rank.send_signal(signal.SIGTERM)
        return [result.result() for result in results]


def free_port() -> int:
    """Return a port of this machine that no server has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
