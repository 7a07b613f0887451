"""The report of a study: one HTML file that needs nothing beside it."""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import optuna
import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from smnas_optuna.errors import UserError
from smnas_optuna.reporting.figures import ColourBy, front_figure, hypervolume_figure, reference_text
from smnas_optuna.reporting.pareto import (
    PARTS,
    Objective,
    accuracy_and_costs,
    hypervolume,
    hypervolume_quantity,
    objectives_of,
    pareto_front,
    trials_frame,
)
from smnas_optuna.reporting.quantity import MISSING, quantity_of

_STATES: Final = {
    "complete": "finished",
    "pruned": "pruned",
    "fail": "failed",
    "running": "running",
    "waiting": "waiting",
}
# Column heads of the table of the front; the metrics of COCO under the short names of its tables.
_METRIC_HEADS: Final = {
    "map": "mAP",
    "map_50": "AP50",
    "map_75": "AP75",
    "map_small": "S",
    "map_medium": "M",
    "map_large": "L",
    "latency_ms": "ms",
    "flops": "GFLOPs",
    "params": "params (M)",
}
_PACKAGES: Final = ("smnas_optuna", "optuna", "plotly")


@dataclass(frozen=True)
class _Headline:
    """A number that a reader wants first, and what it is."""

    label: str
    number: str
    remark: str


def write_report(study: optuna.Study, output_directory: Path) -> Path:
    """Write the report of ``study`` as ``<study name>.html``, with ``/`` replaced by ``-``, and return its path.

    Args:
        study: Any study; one without finished trials gives a page that says so.
        output_directory: Folder of the file; made when missing.

    Raises:
        UserError: When the folder or the file cannot be written.
    """
    path = output_directory / f"{study.study_name.replace('/', '-')}.html"
    page = _render(study)
    try:
        output_directory.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the report to {path}: {error.strerror or error}") from error
    return path


def _render(study: optuna.Study) -> str:
    trials = trials_frame(study)
    front = pareto_front(study)
    objectives = objectives_of(study)
    figures = {}
    if not front.empty:
        # Where all trials share one input size, as in the second stage, the backbones are what differs.
        colour_by: ColourBy = "backbone" if trials["input_size"].nunique() == 1 else "input size"
        figures["front"] = _figure_json(front_figure(study, colour_by))
        if len(objectives) > 1:
            figures["hypervolume"] = _figure_json(hypervolume_figure(study).update_layout(title_text=None, margin_t=12))
    folder = Path(__file__).parent
    template = Environment(loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return template.get_template("page.html").render(
        title=study.study_name,
        css=Markup((folder / "page.css").read_text(encoding="utf-8")),
        plotly_js=Markup(get_plotlyjs()) if figures else None,
        figures=figures,
        reference=reference_text(study),
        states=_count_states(trials),
        objectives=[f"{objective.quantity.title} {'↑' if objective.maximize else '↓'}" for objective in objectives],
        headlines=_headlines(study, trials, front, objectives),
        front_table=_front_table(front, objectives),
        unfinished=_unfinished(trials),
        facts=_facts(study, trials),
        recipe=_recipe(study),
    )


def _figure_json(figure: go.Figure) -> Markup:
    """Return a figure as JSON that is safe within a script element."""
    return Markup(figure.to_json().replace("<", "\\u003c"))


def _count_states(trials: pd.DataFrame) -> str:
    counts = trials["state"].value_counts()
    return ", ".join(f"{counts[state]} {word}" for state, word in _STATES.items() if state in counts) or "none"


def _headlines(
    study: optuna.Study, trials: pd.DataFrame, front: pd.DataFrame, objectives: Sequence[Objective]
) -> list[_Headline]:
    if front.empty:
        return []
    accuracy, costs = accuracy_and_costs(objectives)
    headlines = []
    for objective in (accuracy, *costs):
        best = front.sort_values(objective.name, ascending=not objective.maximize).iloc[0]
        adjective = "best" if objective.name == "map" else "highest" if objective.maximize else "lowest"
        # What it takes: the first cost of the most accurate detector, the accuracy of the cheapest ones.
        others = costs[:1] if objective is accuracy else [accuracy]
        with_others = [f"{other.quantity.title} {other.quantity.text_with_unit(best[other.name])}" for other in others]
        headlines.append(
            _Headline(
                f"{adjective} {objective.quantity.title}",
                objective.quantity.text_with_unit(best[objective.name]),
                ", ".join([f"trial {best['number']}", *with_others]),
            )
        )
    if costs:
        quantity = hypervolume_quantity(objectives)
        headlines.append(_Headline("hypervolume", quantity.text(hypervolume(study)), quantity.unit))
    headlines.append(_Headline("trials", str(len(trials)), _count_states(trials)))
    return headlines


def _front_table(front: pd.DataFrame, objectives: Sequence[Objective]) -> dict[str, Any]:
    others = [objective.name for objective in objectives if objective.name not in _METRIC_HEADS]
    metrics = [*_METRIC_HEADS, *others]
    rows = []
    for _, trial in front.iterrows():
        is_architecture = isinstance(trial["input_size"], str)
        cells = [
            quantity_of(name).text_with_spread(
                trial[name], trial["latency_spread_ms"] if name == "latency_ms" else None
            )
            for name in metrics
        ]
        rows.append(
            {
                "number": trial["number"],
                "enqueued": trial["enqueued"],
                "parts": [_text(trial[part]) for part in PARTS] if is_architecture else None,
                "architecture": _text(trial["architecture"]),
                "metrics": cells,
                "device": _text(trial["device"]),
            }
        )
    several_devices = bool(front["device"].nunique() > 1)
    return {
        "several_devices": several_devices,
        "rows": rows,
        "heads": [_METRIC_HEADS.get(name) or quantity_of(name).measure for name in metrics],
    }


def _unfinished(trials: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {
            "number": str(trial["number"]),
            "state": _STATES[trial["state"]],
            "architecture": _text(trial["architecture"]),
            "reason": _text(trial["reason"]),
        }
        for _, trial in trials[trials["state"].isin(["fail", "pruned"])].iterrows()
    ]


def _facts(study: optuna.Study, trials: pd.DataFrame) -> list[tuple[str, str]]:
    timed = [trial for trial in study.get_trials(deepcopy=False) if trial.datetime_start]
    ended = [trial.datetime_complete for trial in timed if trial.datetime_complete]
    facts = [
        ("study", study.study_name),
        ("trials", _count_states(trials)),
        ("devices", ", ".join(map(str, trials["device"].dropna().unique())) or MISSING),
    ]
    if timed and ended:
        first = min(trial.datetime_start for trial in timed if trial.datetime_start)
        facts.append(("searched", f"{first:%Y-%m-%d %H:%M} to {max(ended):%Y-%m-%d %H:%M}"))
    packages = ", ".join(f"{package} {_version(package)}" for package in _PACKAGES)
    facts.append(("report written with", f"{packages}, Python {platform.python_version()}"))
    return facts


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(a checkout, not installed)"


def _recipe(study: optuna.Study) -> str | None:
    recipe = study.user_attrs.get("recipe")
    if isinstance(recipe, str):
        try:
            recipe = json.loads(recipe)
        except ValueError:
            return str(recipe)
    return json.dumps(recipe, indent=2, ensure_ascii=False) if recipe else None


def _text(value: object) -> str:
    return value if isinstance(value, str) and value else MISSING
