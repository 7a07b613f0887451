"""Runs a command of the package: arguments, one-line errors, exit code."""

import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import typer
import typer.main
from pydantic import ValidationError
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from smnas_optuna.errors import UserError, explain

DEFAULT_STORAGE = "sqlite:///smnas.db"
"""Database of a command that is given no ``--storage``."""


def run_command(command: Callable[..., None], name: str) -> NoReturn:
    """Parse ``sys.argv`` with Typer, call ``command`` and exit; see :func:`run_parser`.

    Args:
        command: A function whose annotated arguments define the command line.
        name: Name of the module below ``smnas_optuna``, as ``--help`` shows it.
    """
    run_parser(build_parser(command), f"python -m smnas_optuna.{name}")


def run_parser(parser: TyperCommand | TyperGroup, name: str) -> NoReturn:
    """Parse ``sys.argv``, call the command that it names and exit.

    The exit code is 0 (done), 1 (the run failed; its traceback is printed), 2 (bad usage or a
    :class:`~smnas_optuna.errors.UserError`, printed as one line on standard error) or 130 (interrupted).

    Args:
        parser: A command line, or a group of them.
        name: How the user calls it, as ``--help`` shows it.
    """
    try:
        code = parser.main(standalone_mode=False, prog_name=name)
    except TyperException as error:
        _fail(_message_of(error))
    except UserError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    # The command has ended: another signal would only print a traceback of the interpreter's shutdown.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code if isinstance(code, int) else 0)


def build_parser(command: Callable[..., None]) -> TyperCommand:
    """Return the command-line parser of a function whose annotated arguments define the command line."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    command_line = typer.main.get_command(app)
    assert isinstance(command_line, TyperCommand)
    return command_line


def writable_folder(folder: Path) -> Path:
    """Create an output folder unless it exists, and return its absolute path.

    Raises:
        UserError: The folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written: {error.strerror}") from None
    return folder.resolve()


def _message_of(error: TyperException) -> str:
    cause = error.__cause__
    if isinstance(error, typer.BadParameter) and isinstance(cause, ValidationError) and error.param is not None:
        return f"{'/'.join(error.param.opts)}: {explain(cause.errors(include_url=False)[0])}"
    return error.format_message()


def _fail(message: str) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
