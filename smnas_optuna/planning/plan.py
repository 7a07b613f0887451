"""A plan: decisions about a search, and the recipe that they make."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from smnas_optuna.parts.detector import Detector
from smnas_optuna.planning import rules
from smnas_optuna.planning.facts import DataFacts, Speed
from smnas_optuna.planning.rules import Decision, Schedule
from smnas_optuna.recipe.settings import FolderDataset
from smnas_optuna.study.budget import duration_text
from smnas_optuna.training.job import Machine

_HEADING = """\
# A plan for {root}, for {budget} on {machine}.
# It is a recipe like any other: edit it, and run the same command again. Delete it to have the search planned anew.
"""


@dataclass(frozen=True)
class Plan:
    """A search that suits some data, a machine and a budget.

    Args:
        decisions: What was decided, and why.
        schedule: How long trials train.
        recipe: The recipe's content, as YAML would be read.
    """

    decisions: tuple[Decision, ...]
    schedule: Schedule
    recipe: dict[str, Any]

    def text(self, machine: str, budget: float) -> str:
        """Return the recipe as YAML, with the reason of each decision above its key.

        Args:
            machine: The machine in words.
            budget: Seconds of the search.
        """
        heading = _HEADING.format(root=self.recipe["dataset"]["root"], budget=duration_text(budget), machine=machine)
        reasons = {decision.key: decision.reason for decision in self.decisions}
        return heading + "".join(f"{line}\n" for line in _lines(self.recipe, reasons, "", ""))


def make_plan(
    name: str,
    dataset: FolderDataset,
    data: DataFacts,
    machine: Machine,
    weights: Mapping[str, str],
    budget: float,
    measure: Callable[[Sequence[str], int, Detector], Speed],
) -> Plan:
    """Decide how to search.

    Args:
        name: Name of the search.
        dataset: The data folder.
        data: Properties of the data.
        machine: Properties of the machine.
        weights: For each of :func:`~smnas_optuna.planning.rules.candidates` with pre-trained weights, what it starts
            from.
        budget: Seconds of the search.
        measure: Measures how fast architectures train, which are given by their texts, with so many images per step and
            with settings that all of them share.
    """
    kind, share = machine.kind, rules.final_share()
    kept = share.value * budget
    searching = budget - kept
    sizes, names = rules.input_sizes(data, kind), rules.backbones(kind, weights)
    channels, batch = rules.fpn_channels(machine), rules.batch_size(data, machine)
    inputs, _ = rules.levels(sizes.value)
    starts = rules.seeds(sizes.value, inputs.value, names.value, channels.value)
    settings = [*rules.proposals(data, machine), *rules.normalization(pretrained=bool(weights))]
    shared = {decision.key.rpartition(".")[2]: decision.value for decision in settings}
    speed = measure(starts.value, batch.value, Detector.model_validate(shared))
    sizes = rules.affordable_sizes(data, machine, speed, sizes, batch.value, searching)
    inputs, outputs = rules.levels(sizes.value)
    found = rules.schedule(data, machine, speed, sizes.value, batch.value, searching)
    decisions = (
        *rules.fewer_images(data, found),
        rules.trials(found, searching),
        names,
        Decision("structural.space.necks", ["FPN", "PAFPN"], "both suit every backbone and head"),
        inputs,
        outputs,
        channels,
        Decision("structural.space.rpns", ["none", "RPN"], "detectors of one stage and of two"),
        rules.heads(found.trials),
        sizes,
        rules.seeds(sizes.value, inputs.value, names.value, channels.value),
        rules.anchor_scale(data, sizes.value),
        *settings,
        rules.epochs(found),
        batch,
        *rules.optimizer(found),
        *rules.augmentation(found),
        rules.loader_workers(machine),
        *rules.mixed_precision(machine),
        rules.timing(found),
        share,
        rules.final_epochs(data, found, speed, sizes.value, kept),
        *rules.final_augmentation(data, found, speed, sizes.value, kept),
        rules.repeats(),
    )
    recipe: dict[str, Any] = {
        "name": name,
        "dataset": dataset.model_dump(mode="json", exclude_none=True),
        "device": {"kind": kind, "timing": {"warmup": 10, "rounds": 5}},
        "structural": {
            "objectives": ["map", "latency_ms"],
            "space": {},
            "training": {"weights": "auto" if weights else "none"},
        },
    }
    for decision in decisions:
        *parents, last = decision.key.split(".")
        section = recipe
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = decision.value
    return Plan(decisions, found, recipe)


def _lines(content: Mapping[str, Any], reasons: Mapping[str, str], path: str, indent: str) -> list[str]:
    lines = []
    for key, value in content.items():
        place = f"{path}{key}"
        if place in reasons:
            lines.append(f"{indent}# {reasons[place]}")
        if isinstance(value, dict):
            lines.append(f"{indent}{key}:")
            lines += _lines(value, reasons, f"{place}.", f"{indent}  ")
        elif isinstance(value, list) and len(str(value)) > 80:
            lines.append(f"{indent}{key}:")
            lines += [f"{indent}  - {_scalar(item)}" for item in value]
        else:
            lines.append(f"{indent}{key}: {_scalar(value)}")
    return lines


def _scalar(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def plan_path(output: Path) -> Path:
    """Return where the plan of a search with an output folder is."""
    return output / "recipe.yaml"
