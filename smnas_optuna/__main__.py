"""The console script ``smnas``, and ``python -m smnas_optuna``: all commands as subcommands, with shell completion."""

import importlib
from typing import Any, Final, NoReturn

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from smnas_optuna.command_line import build_parser, run_parser

COMMANDS: Final = {
    "run_study": "Search detectors, for a data folder or as a recipe says; the same command resumes a search.",
    "recommend": "Say which detectors of a search to deploy, and why.",
    "predict": "Detect objects in photographs with a trained detector.",
    "report": "Write the report of a study as one HTML file.",
    "check_data": "Summarise a data set and list its faults.",
    "detections": "Draw what trained detectors find in validation images.",
    "export": "Write a detector as an MMDetection config or as ONNX.",
    "train": "Train an exported detector fully.",
    "pretrain": "Train a backbone as a classifier.",
    "complexity": "Count multiply-adds and parameters.",
}
"""What each command does, by its name, which is that of its module."""


class _Commands(TyperGroup):
    """The commands. Only the one that is called is imported, since some of them load torch."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """Return a command by its name, with ``-`` or ``_``; None if there is none."""
        name = cmd_name.replace("-", "_")
        if name not in COMMANDS:
            return None
        return build_parser(getattr(importlib.import_module(f"smnas_optuna.{name}"), name))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands and what they do, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def build_group() -> TyperGroup:
    """Return the command-line parser of all commands."""
    app = typer.Typer(
        cls=_Commands, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True, add_completion=True
    )

    @app.callback()
    def smnas() -> None:
        """Search object detectors: backbone, neck, RPN, head and input size, for your data and your device."""

    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return group


def main() -> NoReturn:
    """Run the subcommand that ``sys.argv`` names, and exit."""
    run_parser(build_group(), "smnas")


if __name__ == "__main__":
    main()
