"""``python -m smnas_optuna.report``: write a study's report as one HTML file."""

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
        str, typer.Option(envvar="SMNAS_STORAGE", help="Database URL that the study is in.")
    ] = DEFAULT_STORAGE,
    output: Annotated[Path, typer.Option(help="Folder that the report is written to; made when missing.")] = Path("."),
    known: Annotated[
        Show,
        typer.Option(help="Published detectors to draw beside: those timed on the study's device, all, or none."),
    ] = "comparable",
) -> None:
    """Write the report of a study: its figures and trials, in one HTML file."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(write_report(load_study(storage, study), output, known=known))


if __name__ == "__main__":
    run_command(report, "report")
