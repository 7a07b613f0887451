"""``python -m smnas_optuna.check_data``: what a recipe's data set holds, and all that is wrong with it."""

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
from smnas_optuna.data.inspection import Fault, Summary, collect, inspect_annotations
from smnas_optuna.data.pictures import Depth, inspect_pictures, shared_pictures
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import InputSize
from smnas_optuna.recipe.recipe import Recipe
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.recipe.settings import Dataset
from smnas_optuna.reporting.data_tables import show_faults, show_summaries
from smnas_optuna.reporting.progress import console


@dataclass(frozen=True)
class Findings:
    """What was found in both splits.

    Args:
        splits: What each consists of; those that can be read.
        faults: All that is wrong, in each split and between them.
    """

    splits: dict[str, Summary]
    faults: tuple[Fault, ...]


def check_data(
    recipe: Annotated[str, typer.Argument(help="Path of a recipe, or the name of a shipped one.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a key of the recipe.")
    ] = None,
    images: Annotated[
        Depth,
        typer.Option(
            help="How far to look at each image: its name, so whether it is there; its header, which tells format and "
            "size and takes some 20 seconds for 100,000 on a local disk; or all of its pixels."
        ),
    ] = "header",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what RECIPE's data set holds and all that is wrong with it, before anything is trained.

    What training takes as it is, or passes over, is a warning. Ends with 2 if a search would be refused or would fail.
    """
    search = load_recipe(recipe, overrides or ())
    # A COCO has millions of records, all of them in use; looking for garbage among them doubles the time.
    gc.disable()
    # A large picture is no attack on who trains on it.
    Image.MAX_IMAGE_PIXELS = None
    with Console(stderr=True).status("reading annotations and images"):
        findings = inspect_dataset(search, images)
    if as_json:
        print(json.dumps(asdict(findings), indent=2))
    else:
        out = console()
        out.print(f"{search.name}: {search.dataset.kind} data set, each image looked at as far as its {images}")
        show_summaries(findings.splits, out)
        show_faults(findings.faults, out)
    refuse_unusable(search.dataset, findings.faults)


def inspect_dataset(recipe: Recipe, depth: Depth) -> Findings:
    """Inspect a recipe's data set, with so deep a look at each image; annotations in other formats are converted."""
    sizes = [InputSize.parse(text) for text in recipe.structural.space.input_sizes]
    located: dict[SplitName, LocatedSplit] = {}
    summaries: dict[str, Summary] = {}
    classes, pictures = {}, {}
    faults: list[Fault] = []
    for name in SPLITS:
        try:
            split = locate_split(recipe.dataset, name)
            content = read_annotations(split)
        except UserError as error:
            faults.append(Fault(name, str(error), stops=True))
            continue
        inspection = inspect_annotations(name, content, sizes)
        pictures[name], wrong = inspect_pictures(name, split, inspection.images, depth)
        located[name], summaries[name], classes[name] = split, inspection.summary, inspection.classes
        faults += [*inspection.faults, *wrong]
    if len(located) == len(SPLITS):
        between = " and ".join(SPLITS)
        try:
            check_classes(located, classes)
        except UserError as error:
            faults.append(Fault(between, str(error), stops=True))
        shared = [
            f"{ours}" if ours == theirs else f"{ours}, as {theirs}"
            for ours, theirs in shared_pictures(pictures["train"], pictures["val"]).items()
        ]
        faults += collect(between, "images to validate on that are trained on too", shared, stops=False)
    return Findings(summaries, tuple(faults))


def refuse_unusable(dataset: Dataset, faults: Sequence[Fault]) -> None:
    """Raise UserError, in the words in which a search is refused, if one of the faults stops a search."""
    fatal = next((fault for fault in faults if fault.stops), None)
    if fatal is not None:
        open_dataset(dataset)
        # It is one that comes out in training only.
        raise UserError(f"dataset.{fatal}" + (f", such as {fatal.examples[0]}" if fatal.examples else ""))


if __name__ == "__main__":
    run_command(check_data, "check_data")
