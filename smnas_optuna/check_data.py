"""``python -m smnas_optuna.check_data``: summarise the data set of a recipe or of a folder, and list its faults."""

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console

from smnas_optuna.command_line import run_command
from smnas_optuna.data.datasets import (
    SPLITS,
    LocatedSplit,
    SplitName,
    check_classes,
    locate_split,
    open_dataset,
    read_annotations,
)
from smnas_optuna.data.folder.annotations import problems_of
from smnas_optuna.data.folder.recognition import is_data_folder
from smnas_optuna.data.folder.splits import split_folder
from smnas_optuna.data.inspection import Fault, Summary, collect, inspect_annotations
from smnas_optuna.data.picture_file import Depth
from smnas_optuna.data.pictures import inspect_pictures, shared_pictures
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import InputSize
from smnas_optuna.recipe.recipe_file import folder_dataset, load_recipe
from smnas_optuna.recipe.settings import Dataset, FolderDataset
from smnas_optuna.reporting.data_tables import show_faults, show_summaries
from smnas_optuna.reporting.progress import console


@dataclass(frozen=True)
class Findings:
    """Result of an inspection of a data set.

    Args:
        recognised: What was recognised of a data folder, in sentences; empty for other data sets.
        splits: Summaries by the names of the splits, without splits that cannot be read.
        faults: All faults, in the splits and between them.
    """

    recognised: tuple[str, ...]
    splits: dict[str, Summary]
    faults: tuple[Fault, ...]


def check_data(
    recipe: Annotated[
        str, typer.Argument(help="Folder with images and boxes, path of a recipe, or the name of a shipped one.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a key of the recipe.")
    ] = None,
    images: Annotated[
        Depth,
        typer.Option(
            help="How thoroughly to check each image: whether its file exists (name); format and size in its header, "
            "which takes about 20 seconds for 100,000 images on a local disk (header); or all of its pixels (pixels)."
        ),
    ] = "header",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Summarise the data set of RECIPE, or of a data folder, and list its faults, before anything is trained.

    A fault that training tolerates or ignores is a warning. The exit code is 2 if a search would be refused or fail.
    """
    folder = Path(recipe)
    if is_data_folder(folder):
        name, dataset, sizes = folder.name, folder_dataset(folder, overrides or ()), []
    else:
        search = load_recipe(recipe, overrides or ())
        name, dataset = search.name, search.dataset
        sizes = [InputSize.parse(text) for text in search.structural.space.input_sizes]
    # COCO has millions of records, all of them in use. The garbage collector would search them and double the time.
    gc.disable()
    # Pillow would take large images for an attack.
    Image.MAX_IMAGE_PIXELS = None
    with Console(stderr=True).status("reading annotations and images"):
        findings = inspect_dataset(dataset, sizes, images)
    if as_json:
        print(json.dumps(asdict(findings), indent=2))
    else:
        out = console()
        out.print(f"{name}: {dataset.kind} data set, each image checked by its {images}")
        for line in findings.recognised:
            out.print(line, soft_wrap=True, highlight=False)
        show_summaries(findings.splits, out)
        show_faults(findings.faults, out)
    refuse_unusable(dataset, findings.faults)


def inspect_dataset(dataset: Dataset, sizes: Sequence[InputSize], depth: Depth) -> Findings:
    """Inspect a data set; annotations in other formats than COCO's are converted first.

    Args:
        dataset: The data set.
        sizes: Input sizes to summarise the sizes of boxes for.
        depth: How thoroughly to check each image: ``name``, ``header`` or ``pixels``.

    Raises:
        UserError: A data folder cannot be recognised, or its labels cannot be used.
    """
    folder = split_folder(dataset) if isinstance(dataset, FolderDataset) else None
    if folder is not None and folder.was_split_off and depth == "header":
        # Headers were read when the labels were converted, and copies of an image are on the same side.
        depth = "name"
    located: dict[SplitName, LocatedSplit] = {}
    summaries: dict[str, Summary] = {}
    classes, pictures = {}, {}
    faults: list[Fault] = []
    for name in SPLITS:
        try:
            split = locate_split(dataset, name, folder)
            content = read_annotations(split)
        except UserError as error:
            faults.append(Fault(name, str(error), stops=True))
            continue
        inspection = inspect_annotations(name, content, sizes)
        pictures[name], wrong = inspect_pictures(name, split, inspection.images, depth)
        located[name], summaries[name], classes[name] = split, inspection.summary, inspection.classes
        faults += [*inspection.faults, *wrong]
        for what, (number, examples) in problems_of(content).items():
            faults.append(Fault(name, what, stops=False, count=number, examples=tuple(examples)))
    if len(located) == len(SPLITS):
        between = " and ".join(SPLITS)
        try:
            check_classes(located, classes)
        except UserError as error:
            faults.append(Fault(between, str(error), stops=True))
        shared = [
            f"{train}" if train == val else f"{train}, as {val}"
            for train, val in shared_pictures(pictures["train"], pictures["val"]).items()
        ]
        faults += collect(between, "validation images that are also training images", shared, stops=False)
    return Findings(folder.describe() if folder else (), summaries, tuple(faults))


def refuse_unusable(dataset: Dataset, faults: Sequence[Fault]) -> None:
    """Raise UserError if one of the faults stops a search, with the message with which a search would be refused."""
    fatal = next((fault for fault in faults if fault.stops), None)
    if fatal is not None:
        open_dataset(dataset)
        # Opening succeeded, so the fault would stop a search only during training.
        raise UserError(f"dataset.{fatal}" + (f", such as {fatal.examples[0]}" if fatal.examples else ""))


if __name__ == "__main__":
    run_command(check_data, "check_data")
