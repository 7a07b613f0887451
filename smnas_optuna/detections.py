"""``python -m smnas_optuna.detections``: draw the detections of several trials beside the ground truth."""

from pathlib import Path
from typing import Annotated

import typer

from smnas_optuna.command_line import DEFAULT_STORAGE, run_command
from smnas_optuna.errors import UserError
from smnas_optuna.reporting.detections import draw_detections
from smnas_optuna.study.study import load_study


def detections(
    study: Annotated[str, typer.Option(help="Name of the study, such as coco/structural.")],
    trials: Annotated[str, typer.Option(metavar="N,N,...", help="Numbers of finished trials, one column for each.")],
    storage: Annotated[
        str, typer.Option(envvar="SMNAS_STORAGE", help="URL of the database with the study.")
    ] = DEFAULT_STORAGE,
    output: Annotated[
        Path | None, typer.Option(help="Output folder of the search; work_dirs/RECIPE if not given.")
    ] = None,
    images: Annotated[
        str, typer.Option(metavar="N|NAME,NAME,...", help="Number of validation images, or their file names.")
    ] = "4",
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Lowest score of a detection that is drawn.")] = 0.5,
    save: Annotated[
        Path | None, typer.Option(help="PNG or JPEG file to write; STUDY-detections.png if not given.")
    ] = None,
) -> None:
    """Draw the detections of trials in validation images beside the ground truth."""
    numbers = _trial_numbers(trials)
    loaded = load_study(storage, study)
    path = save or Path(f"{study.replace('/', '-')}-detections.png")
    folder = output or Path("work_dirs") / study.partition("/")[0]
    requested = int(images) if images.isdecimal() else [name for name in images.split(",") if name]
    print(draw_detections(loaded, numbers, folder, requested, threshold, path=path))


def _trial_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--trials {text!r}: expected numbers of finished trials, such as 3,7") from None


if __name__ == "__main__":
    run_command(detections, "detections")
