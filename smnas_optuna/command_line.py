"""How every command of the package ends: exit codes and one-line errors."""

import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import typer
import typer.main
from pydantic import ValidationError
from typer.core import TyperCommand
from typer.exceptions import TyperException

from smnas_optuna.errors import UserError, explain

DEFAULT_STORAGE = "sqlite:///smnas.db"
"""Database of all commands that are given none."""


def run_command(command: Callable[..., None], name: str) -> NoReturn:
    """Parse ``sys.argv`` with Typer, call ``command`` and leave the process.

    Args:
        command: A function whose annotated arguments are the command line.
        name: The module's name, for ``--help``.

    The process ends with 0 (done), with 1 (the run failed, with its traceback), with 2 (bad usage or a
    :class:`~smnas_optuna.errors.UserError`, told in one line on standard error) or with 130 (interrupted).
    """
    try:
        code = parser(command).main(standalone_mode=False, prog_name=f"python -m smnas_optuna.{name}")
    except TyperException as error:
        _fail(_message_of(error))
    except UserError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    # The command is over: being interrupted once more would only show a traceback of the interpreter's end.
    for sent in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sent, signal.SIG_IGN)
    sys.exit(code if isinstance(code, int) else 0)


def parser(command: Callable[..., None]) -> TyperCommand:
    """Return what reads the command line of a function whose annotated arguments it is."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    command_line = typer.main.get_command(app)
    assert isinstance(command_line, TyperCommand)
    return command_line


def writable_folder(folder: Path) -> Path:
    """Make an output folder and return its absolute path.

    Raises:
        UserError: It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written: {error.strerror}") from None
    return folder.resolve()


def _message_of(error: TyperException) -> str:
    refused = error.__cause__
    if isinstance(error, typer.BadParameter) and isinstance(refused, ValidationError) and error.param is not None:
        return f"{'/'.join(error.param.opts)}: {explain(refused.errors(include_url=False)[0])}"
    return error.format_message()


def _fail(message: str) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
