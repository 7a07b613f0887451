"""What ``run_study --dry-run`` prints: the size of a space, some of its architectures, and what a run would do."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
from rich.console import Console

from smnas_optuna.data import bdd
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.settings import BddDataset, Dataset, DigitsDataset, VocDataset
from smnas_optuna.search.search import Search, automatic_weights, known_costs
from smnas_optuna.training.job import SCRATCH, CostRequest, WeightsRequest
from smnas_optuna.training.process import check_backbones, count, describe_weights

_SHOWN_ARCHITECTURES = 5
_COCO_CLASSES = 80


def describe(
    search: Search, n_trials: int | None, sampler: str | None, weights_folder: Path | None, out: Console
) -> None:
    """Print what a run of a stage of the search would do; it reads no data and writes nothing.

    Args:
        search: What the stage's study searches; of stage two any that a study may search.
        n_trials: Instead of the recipe's number.
        sampler: Instead of the recipe's.
        weights_folder: The user's folder of pre-trained weights.
        out: Where to print.
    """
    out.print(search.overview)
    if search.origins:
        _show_architectures(search, "all", search.origins, weights_folder, out)
    else:
        sampled = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        architectures = [search.space.suggest(sampled.ask()) for _ in range(_SHOWN_ARCHITECTURES)]
        _show_architectures(search, "some", dict.fromkeys([*search.starts, *architectures], ""), weights_folder, out)
    training = search.settings.training
    out.print(
        f"{search.goal(n_trials, sampler)}: train each for {training.epochs} epochs at batch size "
        f"{training.batch_size}, then measure "
        f"{', '.join(search.settings.objectives)} on {search.recipe.device.kind}",
        soft_wrap=True,
    )


def _show_architectures(
    search: Search, which: str, sources: Mapping[Architecture, str], weights_folder: Path | None, out: Console
) -> None:
    """Print architectures with their costs, where they come from, and what their training starts from."""
    known = _classes(search.recipe.dataset)
    classes = known or _COCO_CLASSES
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "output.log"
        if search.stage == "structural":
            check_backbones(search.recipe, output)
        costs = count(CostRequest(tuple(sources), classes, search.settings.detector), output)
        weights = _weights(search, tuple(sources), weights_folder, output)
    out.print(f"{which} of them, as detectors of {classes} classes{'' if known else ' (as COCO has)'}:")
    for (architecture, source), initial, cost in zip(sources.items(), weights, costs, strict=True):
        note = f"{source}, from {initial}" if source else f"from {initial}"
        backbone = known_costs(architecture).get("backbone_flops")
        own = f"({backbone / 1e9:.2f} the backbone) " if backbone else ""
        out.print(
            f"  {cost.flops / 1e9:8.2f} GFLOPs {own}{cost.params / 1e6:7.2f} M parameters  {architecture}  ({note})",
            soft_wrap=True,
        )


def _weights(
    search: Search, architectures: tuple[Architecture, ...], folder: Path | None, output: Path
) -> Sequence[str]:
    """Return in words what the training of each architecture starts from."""
    required = [search.pretrained_weights(architecture.backbone) for architecture in architectures]
    automatic = automatic_weights(search, folder)
    if automatic is None:
        return [str(each.pretrained) if each else SCRATCH for each in required]
    described = describe_weights(WeightsRequest(architectures, search.settings.detector, automatic), output)
    return [str(each.pretrained) if each else first for each, first in zip(required, described, strict=True)]


def _classes(dataset: Dataset) -> int | None:
    """Return the number of a data set's classes; None where only its annotations tell."""
    if isinstance(dataset, DigitsDataset):
        return dataset.classes
    if isinstance(dataset, VocDataset):
        return len(dataset.classes)
    return len(bdd.CLASSES) if isinstance(dataset, BddDataset) else None
