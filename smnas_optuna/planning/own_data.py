"""Plans a search on a data folder, or reads the plan that was made before."""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.data.folder.splits import FolderSplits, split_folder
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.detector import Detector
from smnas_optuna.planning.facts import Speed, data_facts
from smnas_optuna.planning.plan import Plan, make_plan, plan_path
from smnas_optuna.planning.rules import candidates
from smnas_optuna.recipe.recipe import Recipe
from smnas_optuna.recipe.recipe_file import folder_dataset, load_recipe, parse_recipe
from smnas_optuna.recipe.settings import FolderDataset
from smnas_optuna.study.budget import duration_text
from smnas_optuna.training.job import AutomaticWeights, SpeedRequest, WeightsRequest
from smnas_optuna.training.process import describe_machine, measure_speed, usable_weights

_VALIDATION = "validation.txt"
# Names that say nothing about the data.
_GENERIC = ("data", "dataset")


def search_name(folder: Path, overrides: Sequence[str]) -> str:
    """Return the name of the search on a data folder: the folder's, unless the user overrides it.

    Args:
        folder: The folder, or its ``data.yaml``.
        overrides: Values of recipe keys, such as ``name=cells``.
    """
    given = [override.partition("=")[2] for override in overrides if override.startswith("name=")]
    path = Path(os.path.abspath(folder))
    own = path.parent if path.is_file() and path.stem in _GENERIC else path.with_suffix("") if path.is_file() else path
    return given[-1] if given else re.sub(r"[^\w.-]+", "-", own.name).strip("-.") or "photos"


def known_plan(folder: Path, output: Path, overrides: Sequence[str]) -> Recipe | None:
    """Return the plan that an output folder has; None if it has none.

    Args:
        folder: The data folder.
        output: The output folder.
        overrides: Values that replace those of the plan.

    Raises:
        UserError: The plan is not valid, or is for another data folder.
    """
    path = plan_path(output)
    if not path.is_file():
        return None
    recipe = load_recipe(str(path), overrides)
    root = recipe.dataset.root if isinstance(recipe.dataset, FolderDataset) else None
    if root != Path(os.path.abspath(folder)):
        raise UserError(
            f"{path}: is the plan for {root}, not for {os.path.abspath(folder)}; expected another --output, or "
            "--set name="
        )
    return recipe


def plan_search(
    folder: Path,
    output: Path,
    overrides: Sequence[str],
    budget: float,
    weights_folder: Path | None,
    say: Callable[[str], None],
    *,
    write: bool,
) -> Recipe:
    """Decide how to search on a data folder, and return the recipe.

    Args:
        folder: The data folder.
        output: The output folder of the search.
        overrides: Values that replace those of the plan; they are not written.
        budget: Seconds of the search.
        weights_folder: The user's folder of pre-trained weights.
        say: Called with each line for the user.
        write: Write the plan, and the list of validation images, to the output folder. Otherwise say all decisions.

    Raises:
        UserError: The data cannot be used, or the output folder cannot be written to.
    """
    dataset = folder_dataset(folder, [each for each in overrides if each.startswith("dataset.")])
    assert isinstance(dataset, FolderDataset)
    dataset = dataset.model_copy(update={"root": Path(os.path.abspath(dataset.root))})
    splits = split_folder(dataset)
    for line in (*splits.describe(), *(f"warning: {problem}" for problem in splits.problems())):
        say(line)
    open_dataset(dataset, splits)
    if write:
        dataset = _with_own_list(dataset, splits, output)
    log = output / "plan.log" if write else Path(os.devnull)
    machine = describe_machine(log)
    facts = data_facts(splits.annotations["train"], splits.annotations["val"])
    names = candidates(machine.kind)
    request = WeightsRequest(tuple(map(_example, names)), Detector(), AutomaticWeights(weights_folder))
    weights = {name: words for name, words in zip(names, usable_weights(request, log), strict=True) if words}

    def measure(texts: Sequence[str], batch: int, detector: Detector) -> Speed:
        architectures = tuple(map(Architecture.parse, texts))
        asked = SpeedRequest(architectures, facts.classes, detector, machine.kind, batch)
        return Speed(dict(zip(texts, measure_speed(asked, log), strict=True)))

    plan = make_plan(search_name(folder, overrides), dataset, facts, machine, weights, budget, measure)
    text = plan.text(str(machine), budget)
    path = plan_path(output)
    if write:
        _write(path, text)
        say(f"plan: {_summary(plan)}; {path} says why, and can be edited")
    else:
        for decision in plan.decisions:
            say(f"{decision.key}: {decision.value}\n    {decision.reason}")
    return parse_recipe(str(path), text, overrides)


def _example(backbone: str) -> Architecture:
    return Architecture.parse(f"320x320 {backbone} FPN(P2-P4,c=64) ATSS")


def _summary(plan: Plan) -> str:
    found = plan.schedule
    return (
        f"about {found.trials} trials of {found.steps:,} steps, which take about {duration_text(found.seconds)} each, "
        f"with inputs of {', '.join(plan.recipe['structural']['space']['input_sizes'])}"
    )


def _with_own_list(dataset: FolderDataset, splits: FolderSplits, output: Path) -> FolderDataset:
    """Copy the list of a validation part that was split off to the output folder, where the user can edit it."""
    if splits.validation is None or dataset.validation is not None:
        return dataset
    path = output / _VALIDATION
    try:
        if not path.is_file():
            shutil.copyfile(splits.validation, path)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}") from None
    return dataset.model_copy(update={"validation": path})


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {path.parent}: cannot be written: {error.strerror}") from None
