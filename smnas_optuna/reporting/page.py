"""The report of a study: one HTML file that needs nothing beside it."""

import base64
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
from smnas_optuna.parts.architecture import BackboneCode
from smnas_optuna.reporting.correlation import PART_TITLES, module_importances
from smnas_optuna.reporting.correlation_figures import correlations_figure, importance_figure
from smnas_optuna.reporting.figures import front_figure, hypervolume_figure, reference_text
from smnas_optuna.reporting.hypervolume import Hypervolume, measure_hypervolume
from smnas_optuna.reporting.pareto import (
    PARTS,
    Objective,
    accuracy_and_costs,
    objectives_of,
    pareto_front,
    trials_frame,
)
from smnas_optuna.reporting.published import Show, known_detectors, known_traces
from smnas_optuna.reporting.quantity import MISSING, quantity_of
from smnas_optuna.reporting.stages import stages_figure
from smnas_optuna.samplers import PartialOrderPruningSampler
from smnas_optuna.search.modular import refined_trial
from smnas_optuna.search.search import Search, known_objectives
from smnas_optuna.search.studies import lineage_of, search_of
from smnas_optuna.study.study import relatives_of

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
_LEFT_OUT: Final = (
    "This page does not show how often trained detectors contradict the order, nor the hypervolume relative to that of "
    "the starting detectors"
)
_PACKAGES: Final = ("smnas_optuna", "optuna", "plotly")


@dataclass(frozen=True)
class _Headline:
    """A number that a reader wants first, and what it is."""

    label: str
    number: str
    remark: str


@dataclass(frozen=True)
class _Section:
    """A figure with what stands above it."""

    id: str
    title: str
    text: str
    label: str
    figure: Markup
    height: int


def _section(id_: str, title: str, text: str, label: str, figure: go.Figure) -> _Section:
    # JSON that is safe within a script element; the height is kept free, so that nothing moves when it is drawn.
    return _Section(id_, title, text, label, Markup(figure.to_json().replace("<", "\\u003c")), figure.layout.height)


def write_report(study: optuna.Study, output_directory: Path, *, known: Show = "comparable") -> Path:
    """Write the report of ``study`` as ``<study name>.html``, with ``/`` replaced by ``-``, and return its path.

    Args:
        study: Any study; one without finished trials gives a page that says so.
        output_directory: Folder of the file; made when missing.
        known: Which published detectors to draw beside the study's, see
            :func:`~smnas_optuna.reporting.published.known_detectors`.

    Raises:
        UserError: When the folder or the file cannot be written.
    """
    path = output_directory / f"{study.study_name.replace('/', '-')}.html"
    page = _render(study, known)
    try:
        output_directory.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the report to {path}: {error.strerror or error}") from error
    return path


def _render(study: optuna.Study, known: Show) -> str:
    # First, for it imports what the recipe adds to the parts of architectures.
    search, left_out = _search(study)
    trials = trials_frame(study)
    front = pareto_front(study)
    objectives = objectives_of(study)
    hypervolume = measure_hypervolume(study)
    sections = [] if front.empty else _sections(study, trials, objectives, hypervolume, known)
    if sections and len(objectives) > 1 and hypervolume is None:
        left_out += " The hypervolume is not shown, for times of several devices cannot be compared."
    folder = Path(__file__).parent
    template = Environment(loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return template.get_template("page.html").render(
        title=study.study_name,
        css=Markup((folder / "page.css").read_text(encoding="utf-8")),
        plotly_js=Markup(get_plotlyjs()) if sections else None,
        sections=sections,
        states=_count_states(trials),
        objectives=[f"{objective.quantity.title} {'↑' if objective.maximize else '↓'}" for objective in objectives],
        lineage=lineage_of(study),
        left_out=left_out,
        headlines=_headlines(trials, front, objectives, hypervolume),
        front_title="Pareto front" if len(objectives) > 1 else "Best trials",
        front_table=_front_table(front, objectives, study),
        csv=_csv(trials),
        csv_name=f"{study.study_name.replace('/', '-')}.csv",
        unfinished=_unfinished(trials),
        facts=_facts(study, trials),
        violations=_violations(study, search, objectives),
        recipe=_recipe(study),
    )


def _sections(
    study: optuna.Study,
    trials: pd.DataFrame,
    objectives: Sequence[Objective],
    hypervolume: Hypervolume | None,
    known: Show,
) -> list[_Section]:
    several = len(objectives) > 1
    sections = [
        _section(
            "front",
            "Accuracy against cost" if several else "Search history",
            "",
            "All trials and the best among them; the table below has the numbers",
            front_figure(study, known=known_traces(known_detectors(study, known))),
        )
    ]
    stages = stages_figure(relatives_of(study))
    if stages is not None:
        text = "Every detector of the search over its measured time; stars are those that stage two took on."
        sections.append(_section("stages", "Stage one and stage two", text, text, stages))
    sections.append(_effects(study, trials))
    if hypervolume:
        figure = hypervolume_figure(study).update_layout(title_text=None, margin_t=12)
        label = "Hypervolume after each finished trial"
        sections.append(
            _section("hypervolume", "Hypervolume over the search", f"{reference_text(study)}.", label, figure)
        )
    return sections


def _effects(study: optuna.Study, trials: pd.DataFrame) -> _Section:
    """Show what matters: the traits of searched backbones, or else the modules of detectors."""
    finished = trials[trials["is_finished"]]
    if finished["backbone_family"].isin(BackboneCode.BLOCKS).any():
        text = "Depth in blocks, width in channels; DC_k: where channels double; len_k: share of the blocks in a stage."
        return _section("correlation", "What goes with accuracy", text, text, correlations_figure(study))
    importances = module_importances(study)
    text = " ".join(["Shares of each objective's variation over all finished trials.", *importances.remarks])
    label = "Importance of each module for each objective"
    return _section("modules", "Which module matters", text, label, importance_figure(importances))


def _search(study: optuna.Study) -> tuple[Search | None, str]:
    """Return what the study searches; or None and a sentence on what the page leaves out and why."""
    try:
        return search_of(study), ""
    except UserError as error:
        # Any study of Optuna can be reported, and of one that is no search nothing is missed.
        return None, f"{_LEFT_OUT}: {error}." if "recipe" in study.user_attrs else ""


def _candidate(study: optuna.Study) -> str:
    """Return the candidate of a study of stage two by the study's name: ``C0``."""
    return study.study_name.rpartition("/")[2]


def _count_states(trials: pd.DataFrame) -> str:
    counts = trials["state"].value_counts()
    return ", ".join(f"{counts[state]} {word}" for state, word in _STATES.items() if state in counts) or "none"


def _headlines(
    trials: pd.DataFrame, front: pd.DataFrame, objectives: Sequence[Objective], hypervolume: Hypervolume | None
) -> list[_Headline]:
    if front.empty:
        return []
    accuracy, costs = accuracy_and_costs(objectives)
    headlines = []
    several_devices = front["device"].nunique() > 1
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
                ", ".join([f"trial {best['number']}", *with_others, *([best["device"]] if several_devices else [])]),
            )
        )
    if hypervolume:
        headlines.append(_Headline("hypervolume", hypervolume.number, hypervolume.remark))
    headlines.append(_Headline("trials", str(len(trials)), _count_states(trials)))
    return headlines


def _violations(study: optuna.Study, search: Search | None, objectives: Sequence[Objective]) -> list[str]:
    """Say how often the trained detectors contradict the partial order that the search took for granted."""
    if search is None:
        return []
    sampler = PartialOrderPruningSampler(
        search.space.suggest, search.order, known_objectives(search.settings.objectives)
    )
    return [
        f"{objective.quantity.title}: {violated} of {pairs} pairs"
        for objective, (violated, pairs) in zip(objectives, sampler.order_violations(study), strict=True)
    ]


def _csv(trials: pd.DataFrame) -> Markup:
    """Return all trials as a CSV file in a data URL."""
    text = trials.drop(columns=["worker"], errors="ignore").to_csv(index=False)
    return Markup(f"data:text/csv;charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}")


def _front_table(front: pd.DataFrame, objectives: Sequence[Objective], study: optuna.Study) -> dict[str, Any]:
    others = [objective.name for objective in objectives if objective.name not in _METRIC_HEADS]
    metrics = [*_METRIC_HEADS, *others]
    parent = refined_trial(study)
    # Stage two leaves the rest of the candidate as it is.
    parts = PARTS if parent is None else ("backbone", "neck")
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
                "parts": [_text(trial[part]) for part in parts] if is_architecture else None,
                "architecture": _text(trial["architecture"]),
                "metrics": cells,
                "device": _text(trial["device"]),
            }
        )
    return {
        "parts": [PART_TITLES[part] for part in parts],
        "several_devices": bool(front["device"].nunique() > 1),
        "parent": "" if parent is None else f"{_candidate(study)}, trial {parent}",
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
    versions = study.user_attrs.get("versions", {})
    device = study.user_attrs.get("device")
    conditions = {key: value for key, value in device.items() if key != "name"} if isinstance(device, dict) else {}
    if conditions:
        facts.append(("timed with", ", ".join(f"{key} {value}" for key, value in conditions.items())))
    if versions:
        facts.append(("searched with", ", ".join(f"{package} {release}" for package, release in versions.items())))
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
