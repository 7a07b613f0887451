"""``python -m smnas_optuna.recommend``: say which detectors of a search to deploy, and why."""

from typing import Annotated

import optuna
import typer

from smnas_optuna.command_line import DEFAULT_STORAGE, run_command
from smnas_optuna.reporting.recommendation import recommendation_of
from smnas_optuna.study.study import load_study


def recommend(
    study: Annotated[str, typer.Argument(help="Name of the study, such as photos/structural.")],
    storage: Annotated[
        str, typer.Option(envvar="SMNAS_STORAGE", help="URL of the database with the study.")
    ] = DEFAULT_STORAGE,
) -> None:
    """Say which detectors of a search to deploy: the most accurate, one that is faster, and the knee of the front.

    The search may still be running.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for sentence in recommendation_of(load_study(storage, study)).sentences:
        print(sentence)


if __name__ == "__main__":
    run_command(recommend, "recommend")
