"""What ``run_study --dry-run`` tells: the size of a space, some of its architectures, and what a run would do."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import optuna
from rich.console import Console

from smnas_optuna.data import bdd
from smnas_optuna.parts.architecture import Architecture, InputSize
from smnas_optuna.parts.heads.retinanet import RetinaNetHead
from smnas_optuna.parts.necks.fpn import FPN
from smnas_optuna.recipe.recipe import Modular, Recipe, Structural, Transfer
from smnas_optuna.recipe.settings import BddDataset, Dataset, DigitsDataset, VocDataset
from smnas_optuna.search.search import Candidate, Search, known_costs
from smnas_optuna.training.job import Candidates
from smnas_optuna.training.process import count, preload

_SHOWN_ARCHITECTURES = 5
_COCO_CLASSES = 80


def describe(
    recipe: Recipe, stage: Literal["structural", "modular"], n_trials: int | None, sampler: str | None, out: Console
) -> None:
    """Print what a run of a stage of the search would do; it reads no data and writes nothing.

    Args:
        recipe: The search.
        stage: ``modular`` only if the recipe has it.
        n_trials: Instead of the recipe's number.
        sampler: Instead of the recipe's.
        out: Where to print.
    """
    settings = recipe.structural if stage == "structural" else recipe.modular
    assert settings is not None
    if isinstance(settings, Structural):
        space = settings.space
        out.print(f"study {recipe.name}/structural: {space.size:,} architectures")
        _show_some(Search(recipe), out)
        first = f"{len(settings.seeds)} given seeds first"
        goal = f"a run would evaluate {n_trials or settings.trials} of them"
    else:
        last = settings.candidates - 1
        out.print(f"studies {recipe.name}/modular/C0 to C{last}, one for each candidate picked from stage one's front")
        searches = _examples(recipe)
        for search in searches:
            assert search.candidate is not None
            out.print(f"  {search.space.size:,} architectures for {search.candidate.architecture}")
        _show_some(searches[0], out)
        first = "the candidate's own backbone and the paper's of its kind first"
        goal = f"a run would evaluate {n_trials or settings.trials} for each candidate"
    _show_training(recipe, settings, f"{goal}, {first} and the others proposed by {sampler or settings.sampler}", out)


def describe_transfer(search: Search, out: Console) -> None:
    """Print what a run of the stage ``transfer`` would train."""
    assert search.transferred is not None
    out.print(f"study {search.study_name}: {len(search.transferred)} detectors")
    notes = [f"{each.source}, trained from {search.start(each.architecture.backbone)}" for each in search.transferred]
    _show_costs(search, search.starts, notes, out)
    _show_training(search.recipe, search.settings, "a run would evaluate all of them", out)


def _show_training(recipe: Recipe, settings: Structural | Modular | Transfer, goal: str, out: Console) -> None:
    training = settings.training
    out.print(
        f"{goal}: train each for {training.epochs} epochs at batch size {training.batch_size} with weights from "
        f"{training.weights}, then measure {', '.join(settings.objectives)} on {recipe.device.kind}",
        soft_wrap=True,
    )


def _show_some(search: Search, out: Console) -> None:
    """Sample architectures, count their costs and print both."""
    sampled = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    architectures = [search.space.suggest(sampled.ask()) for _ in range(_SHOWN_ARCHITECTURES)]
    _show_costs(search, architectures, [""] * len(architectures), out)


def _show_costs(search: Search, architectures: Sequence[Architecture], notes: Sequence[str], out: Console) -> None:
    """Count the costs of architectures, and print each with a note on it."""
    preload()
    known = _classes(search.recipe.dataset)
    classes = known or _COCO_CLASSES
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Candidates(tuple(architectures), classes, search.settings.detector)
        costs = count(wanted, Path(scratch) / "output.log")
    which = "all" if search.transferred is not None else "some"
    out.print(f"{which} of them, as detectors of {classes} classes{'' if known else ' (as COCO has)'}:")
    for architecture, cost, note in zip(architectures, costs, notes, strict=True):
        backbone = known_costs(architecture).get("backbone_flops")
        own = f"({backbone / 1e9:.2f} the backbone) " if backbone else ""
        told = f"  ({note})" if note else ""
        out.print(
            f"  {cost.flops / 1e9:8.2f} GFLOPs {own}{cost.params / 1e6:7.2f} M parameters  {architecture}{told}",
            soft_wrap=True,
        )


def _classes(dataset: Dataset) -> int | None:
    """Return the number of a data set's classes; None where only its annotations tell."""
    if isinstance(dataset, DigitsDataset):
        return dataset.classes
    if isinstance(dataset, VocDataset):
        return len(dataset.classes)
    return len(bdd.CLASSES) if isinstance(dataset, BddDataset) else None


def _examples(recipe: Recipe) -> list[Search]:
    """Return searches of stage two for candidates that stage one may find: one per kind of block."""
    space = recipe.structural.space
    neck = FPN(1, 4, 5, space.fpn_channels) if "FPN" in space.necks else None
    size = InputSize.parse(space.input_sizes[-1])
    found: dict[str, Search] = {}
    for name in space.backbones:
        backbone = space.backbone(name)
        candidate = Candidate(len(found), "", 0, Architecture(size, backbone, neck, None, RetinaNetHead()))
        found.setdefault(backbone.block, Search(recipe, candidate))
    return list(found.values())
