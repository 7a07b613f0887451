"""``python -m smnas_optuna.report``: write the report of a study as an HTML file."""

from pathlib import Path
from typing import Annotated

import optuna
import typer

from smnas_optuna.command_line import DEFAULT_STORAGE, run_command
from smnas_optuna.reporting.page import write_report
from smnas_optuna.reporting.published import Show
from smnas_optuna.study.study import load_study


def report(
    study: Annotated[str, typer.Option(help="Name of the study, such as coco/structural.")],
    storage: Annotated[
        str, typer.Option(envvar="SMNAS_STORAGE", help="URL of the database with the study.")
    ] = DEFAULT_STORAGE,
    output: Annotated[Path, typer.Option(help="Folder to write the report to; created if absent.")] = Path("."),
    known: Annotated[
        Show,
        typer.Option(help="Published detectors in the figures: those timed on the study's device, all, or none."),
    ] = "comparable",
) -> None:
    """Write the report of a study, with its figures and trials, as a self-contained HTML file."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(write_report(load_study(storage, study), output, known=known))


if __name__ == "__main__":
    run_command(report, "report")
