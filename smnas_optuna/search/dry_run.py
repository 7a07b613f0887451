"""What ``run_study --dry-run`` prints: the size of a space, some of its architectures, and what a run would do."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import optuna
from rich.console import Console

from smnas_optuna.data import bdd
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.settings import BddDataset, Dataset, DigitsDataset, VocDataset
from smnas_optuna.search.search import Search, known_costs
from smnas_optuna.training.job import CostRequest
from smnas_optuna.training.process import check_backbones, count

_SHOWN_ARCHITECTURES = 5
_COCO_CLASSES = 80


def describe(search: Search, n_trials: int | None, sampler: str | None, out: Console) -> None:
    """Print what a run of a stage of the search would do; it reads no data and writes nothing.

    Args:
        search: What the stage's study searches; of stage two any that a study may search.
        n_trials: Instead of the recipe's number.
        sampler: Instead of the recipe's.
        out: Where to print.
    """
    out.print(search.overview)
    if search.origins:
        notes = {each: f"  ({origin.source}, trained from {origin.weights})" for each, origin in search.origins.items()}
        _show_costs(search, "all", notes, out)
    else:
        sampled = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        architectures = [search.space.suggest(sampled.ask()) for _ in range(_SHOWN_ARCHITECTURES)]
        _show_costs(search, "some", dict.fromkeys(architectures, ""), out)
    training = search.settings.training
    out.print(
        f"{search.goal(n_trials, sampler)}: train each for {training.epochs} epochs at batch size "
        f"{training.batch_size} with weights from {training.weights}, then measure "
        f"{', '.join(search.settings.objectives)} on {search.recipe.device.kind}",
        soft_wrap=True,
    )


def _show_costs(search: Search, which: str, notes: Mapping[Architecture, str], out: Console) -> None:
    """Count the costs of architectures, and print each with a note on it."""
    known = _classes(search.recipe.dataset)
    classes = known or _COCO_CLASSES
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "output.log"
        if search.stage == "structural":
            check_backbones(search.recipe, output)
        costs = count(CostRequest(tuple(notes), classes, search.settings.detector), output)
    out.print(f"{which} of them, as detectors of {classes} classes{'' if known else ' (as COCO has)'}:")
    for (architecture, note), cost in zip(notes.items(), costs, strict=True):
        backbone = known_costs(architecture).get("backbone_flops")
        own = f"({backbone / 1e9:.2f} the backbone) " if backbone else ""
        out.print(
            f"  {cost.flops / 1e9:8.2f} GFLOPs {own}{cost.params / 1e6:7.2f} M parameters  {architecture}{note}",
            soft_wrap=True,
        )


def _classes(dataset: Dataset) -> int | None:
    """Return the number of a data set's classes; None where only its annotations tell."""
    if isinstance(dataset, DigitsDataset):
        return dataset.classes
    if isinstance(dataset, VocDataset):
        return len(dataset.classes)
    return len(bdd.CLASSES) if isinstance(dataset, BddDataset) else None
