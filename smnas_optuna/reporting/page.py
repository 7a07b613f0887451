"""The report of a study: a self-contained HTML file."""

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
from optuna.study import StudyDirection
from optuna.trial import TrialState
from plotly.offline import get_plotlyjs

from smnas_optuna.errors import UserError
from smnas_optuna.parts.backbones.searched import BackboneCode
from smnas_optuna.reporting.correlation_figures import correlations_figure, importance_figure
from smnas_optuna.reporting.figures import front_figure, hypervolume_figure
from smnas_optuna.reporting.hypervolume import Hypervolume, measure_hypervolume
from smnas_optuna.reporting.importance import module_importances
from smnas_optuna.reporting.published import Show, known_detectors, known_traces
from smnas_optuna.reporting.quantity import MISSING, PRECISIONS
from smnas_optuna.reporting.recommendation import recommend_from
from smnas_optuna.reporting.stages import stages_figure
from smnas_optuna.reporting.study_results import (
    PARTS,
    StudyResults,
    accuracy_and_costs,
    results_of,
    study_in_memory,
)
from smnas_optuna.reporting.trial_states import count_states, state_words
from smnas_optuna.reporting.trial_table import Column, has_pretrained, metric_columns
from smnas_optuna.samplers import PartialOrderPruningSampler
from smnas_optuna.search.search import known_objectives
from smnas_optuna.study.optuna_internals import storage_of
from smnas_optuna.study.study import relatives_of

_LEFT_OUT: Final = (
    "This page does not show how often trained detectors contradict the partial order, nor the hypervolume relative to "
    "that of the starting detectors"
)
_PACKAGES: Final = ("smnas_optuna", "optuna", "plotly")


@dataclass(frozen=True)
class _Headline:
    """A number at the top of the page."""

    label: str
    number: str
    remark: str


@dataclass(frozen=True)
class _Section:
    """A figure with its heading and text."""

    id: str
    title: str
    text: str
    label: str
    figure: Markup
    height: int


def _section(id_: str, title: str, text: str, label: str, figure: go.Figure) -> _Section:
    # The JSON is safe inside a script element. The page reserves the height, so nothing moves when the figure is drawn.
    return _Section(id_, title, text, label, Markup(figure.to_json().replace("<", "\\u003c")), figure.layout.height)


def write_report(study: optuna.Study, output_directory: Path, *, known: Show = "comparable") -> Path:
    """Write the report of a study as ``<study name>.html``, with ``/`` replaced by ``-``, and return its path.

    Args:
        study: Any Optuna study. If no trial has finished, the page says so.
        output_directory: Folder to write to; created if absent.
        known: Published detectors to show in the figures, see
            :func:`~smnas_optuna.reporting.published.known_detectors`.

    Raises:
        UserError: The folder or the file cannot be written.
    """
    path = output_directory / f"{study.study_name.replace('/', '-')}.html"
    results = results_of(study)
    relatives = [results if other.study_name == results.name else results_of(other) for other in relatives_of(study)]
    page = _render(results, relatives, known, _recommendation(study, results))
    try:
        output_directory.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the report to {path}: {error.strerror or error}") from error
    return path


def _recommendation(study: optuna.Study, results: StudyResults) -> list[str]:
    """Return sentences on what to deploy; none for a study that is no search, or has no detector to recommend."""
    if results.search is None or results.search.origins:
        return []
    try:
        return recommend_from(results, storage_of(study)).sentences
    except UserError:
        return []


def _render(
    results: StudyResults, relatives: Sequence[StudyResults], known: Show, recommendation: Sequence[str]
) -> str:
    front = results.front
    several = len(results.objectives) > 1
    hypervolume = measure_hypervolume(results)
    sections = [] if front.empty else _sections(results, relatives, hypervolume, known)
    left_out = ""
    if results.problem and "recipe" in results.attributes:
        left_out = f"{_LEFT_OUT}: {results.problem}."
    if sections and several and hypervolume is None:
        left_out += " The hypervolume is not shown, because times of several devices cannot be compared."
    folder = Path(__file__).parent
    template = Environment(loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return template.get_template("page.html").render(
        title=results.name,
        css=Markup((folder / "page.css").read_text(encoding="utf-8")),
        plotly_js=Markup(get_plotlyjs()) if sections else None,
        sections=sections,
        states=count_states(results.trials),
        objectives=[f"{item.quantity.title} {'↑' if item.maximize else '↓'}" for item in results.objectives],
        lineage=results.lineage,
        left_out=left_out,
        headlines=_headlines(results, hypervolume),
        recommendation=recommendation,
        front_title="Pareto front" if several else "Best trials",
        front_table=_front_table(results),
        csv=_csv(results.frame),
        csv_name=f"{results.name.replace('/', '-')}.csv",
        unfinished=_unfinished(results),
        facts=_facts(results),
        violations=_violations(results),
        recipe=_recipe(results),
    )


def _sections(
    results: StudyResults, relatives: Sequence[StudyResults], hypervolume: Hypervolume | None, known: Show
) -> list[_Section]:
    sections = [
        _section(
            "front",
            "Accuracy against cost" if len(results.objectives) > 1 else "Search history",
            "",
            "All trials and the best among them; the table below has the numbers",
            front_figure(results, known=known_traces(known_detectors(results, known))),
        )
    ]
    stages = stages_figure(relatives)
    if stages is not None:
        text = "All detectors of both stages over their measured time; stars are the candidates that stage two refines."
        sections.append(_section("stages", "Stage one and stage two", text, text, stages))
    sections.append(_effects(results))
    if hypervolume:
        figure = hypervolume_figure(hypervolume).update_layout(title_text=None, margin_t=12)
        label = "Hypervolume after each finished trial"
        text = f"{hypervolume.reference_text}."
        sections.append(_section("hypervolume", "Hypervolume over the search", text, label, figure))
    return sections


def _effects(results: StudyResults) -> _Section:
    """Return the correlations of factors of searched backbones, or for other studies the importance of modules."""
    if results.finished["backbone_family"].isin(BackboneCode.BLOCKS).any():
        text = "Depth in blocks, width in channels; DC_k: where channels double; len_k: share of the blocks in a stage."
        return _section("correlation", "What goes with accuracy", text, text, correlations_figure(results))
    importances = module_importances(results)
    text = " ".join(["Shares of each objective's variation over all finished trials.", *importances.remarks])
    label = "Importance of each module for each objective"
    return _section("modules", "Which module matters", text, label, importance_figure(importances))


def _candidate(results: StudyResults) -> str:
    """Return the candidate's name, such as ``C0``, from the name of its study."""
    return results.name.rpartition("/")[2]


def _headlines(results: StudyResults, hypervolume: Hypervolume | None) -> list[_Headline]:
    front = results.front
    if front.empty:
        return []
    accuracy, costs = accuracy_and_costs(results.objectives)
    headlines = []
    several_devices = front["device"].nunique() > 1
    for objective in (accuracy, *costs):
        best = front.sort_values(objective.name, ascending=not objective.maximize).iloc[0]
        adjective = "best" if objective.name == "map" else "highest" if objective.maximize else "lowest"
        # Beside the best value: the cost of the most accurate detector, and the accuracy of the cheapest ones.
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
    headlines.append(_Headline("trials", str(len(results.trials)), count_states(results.trials)))
    return headlines


def _violations(results: StudyResults) -> list[str]:
    """Return, for each objective, how often the trained detectors contradict the partial order of the search."""
    search = results.search
    if search is None:
        return []
    sampler = PartialOrderPruningSampler(
        search.space.suggest, search.order, known_objectives(search.settings.objectives)
    )
    trained = study_in_memory(
        [StudyDirection.MAXIMIZE if item.maximize else StudyDirection.MINIMIZE for item in results.objectives],
        [trial for trial in results.trials if trial.state == TrialState.COMPLETE],
    )
    return [
        f"{objective.quantity.title}: {violated} of {pairs} pairs"
        for objective, (violated, pairs) in zip(results.objectives, sampler.order_violations(trained), strict=True)
    ]


def _csv(trials: pd.DataFrame) -> Markup:
    """Return a data URL of a CSV file with all trials."""
    text = trials.drop(columns=["worker"], errors="ignore").to_csv(index=False)
    return Markup(f"data:text/csv;charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}")


def _front_table(results: StudyResults) -> dict[str, Any]:
    front, refined = results.front, results.refined_trial
    # Stage two does not change the candidate's other parts.
    parts = [Column(part) for part in (PARTS if refined is None else ("backbone", "neck", "head"))]
    metrics = metric_columns(PRECISIONS, results.objectives)
    rows = [
        {
            "trial": Column("number").text(trial),
            "parts": [part.text(trial) for part in parts] if isinstance(trial["input_size"], str) else None,
            "architecture": Column("architecture").text(trial),
            "metrics": [metric.text(trial) for metric in metrics],
            "device": Column("device").text(trial),
            "weights": Column("weights").text(trial),
        }
        for trial in front.to_dict("records")
    ]
    return {
        "parts": parts,
        "metrics": metrics,
        "several_devices": bool(front["device"].nunique() > 1),
        "pretrained": has_pretrained(front),
        "parent": "" if refined is None else f"{_candidate(results)}, trial {refined}",
        "rows": rows,
    }


def _unfinished(results: StudyResults) -> list[dict[str, str]]:
    return [
        {
            "number": str(trial.number),
            "state": word,
            "architecture": _text(trial.user_attrs.get("architecture")),
            "reason": _text(trial.user_attrs.get("reason")),
        }
        for trial, word in zip(results.trials, state_words(results.trials), strict=True)
        if trial.state in (TrialState.FAIL, TrialState.PRUNED)
    ]


def _facts(results: StudyResults) -> list[tuple[str, str]]:
    timed = [trial for trial in results.trials if trial.datetime_start]
    ended = [trial.datetime_complete for trial in timed if trial.datetime_complete]
    facts = [
        ("study", results.name),
        ("trials", count_states(results.trials)),
        ("devices", ", ".join(map(str, results.frame["device"].dropna().unique())) or MISSING),
    ]
    weights = results.frame["weights"].value_counts()
    if len(weights):
        facts.append(("trained from", ", ".join(f"{name} ({count})" for name, count in weights.items())))
    versions = results.attributes.get("versions", {})
    device = results.attributes.get("device")
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


def _recipe(results: StudyResults) -> str | None:
    recipe = results.attributes.get("recipe")
    if isinstance(recipe, str):
        try:
            recipe = json.loads(recipe)
        except ValueError:
            return str(recipe)
    return json.dumps(recipe, indent=2, ensure_ascii=False) if recipe else None


def _text(value: object) -> str:
    return value if isinstance(value, str) and value else MISSING
