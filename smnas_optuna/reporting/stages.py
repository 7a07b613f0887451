"""A figure of both stages of a search: how stage two improves the front of stage one (SM-NAS, Fig. 4)."""

import html
import itertools
from collections.abc import Iterator, Sequence

import pandas as pd
import plotly.graph_objects as go

from smnas_optuna.reporting.figures import line_shape
from smnas_optuna.reporting.study_results import Objective, StudyResults, by_device, losses_of
from smnas_optuna.reporting.style import (
    AFTER_COLOURS,
    COLOURS,
    GROUND,
    INK,
    OTHER_COLOUR,
    apply_style,
    axis_title,
    hover_texts,
    in_shown_unit,
    spread_bars,
)
from smnas_optuna.samplers.partial_order_pruning.dominance import non_dominated

_ACCURACY = Objective("map", maximize=True)
_COST = Objective("latency_ms", maximize=False)


def stages_figure(studies: Sequence[StudyResults]) -> go.Figure | None:
    """Draw mAP against measured inference time for the studies of both stages of one search.

    Stage two minimises the backbone's FLOPs, but its trials are also timed, so both stages can share the axes. Each
    candidate is a star in the colour of its stage-two study, and that study's front of mAP and time is a line.

    Args:
        studies: The study of stage one, followed by those of stage two, as ``study.relatives_of`` returns them.

    Returns:
        The figure; None if one of the stages has no trial with mAP and inference time.
    """
    frames = {study.name: _measured(study) for study in studies}
    present = [study.name for study in studies if not frames[study.name].empty]
    parents = {study.name: study.refined_trial for study in studies if study.refined_trial is not None}
    stage_one = [name for name in present if name not in parents]
    stage_two = [name for name in present if name in parents]
    if not stage_one or not stage_two:
        return None
    figure = go.Figure()
    first = frames[stage_one[0]]
    for trace in _traces("stage one", first, OTHER_COLOUR, INK):
        figure.add_trace(trace)
    for study_name, colour in zip(stage_two, itertools.cycle(COLOURS), strict=False):
        name = study_name.rpartition("/")[2]
        for trace in _traces(name, frames[study_name], colour, colour):
            figure.add_trace(trace)
        parent = first[first["number"] == parents[study_name]]
        if not parent.empty:
            figure.add_trace(_star(name, parent, colour))
    everything = pd.concat(frames.values())
    apply_style(figure, 480)
    figure.update_layout(margin_t=24)
    figure.update_xaxes(title_text=axis_title("latency_ms", everything))
    figure.update_yaxes(title_text=axis_title("map", everything))
    return figure


def _measured(results: StudyResults) -> pd.DataFrame:
    frame = results.finished
    frame = frame[frame["map"].notna() & frame["latency_ms"].notna()]
    return frame.assign(hover=hover_texts(frame, results.name, results.metrics))


def _traces(name: str, trials: pd.DataFrame, colour: str, line_colour: str) -> Iterator[go.Scatter]:
    fronts = []
    is_ink = line_colour == INK
    # Each device has its own front, since times of different devices cannot be compared.
    for comparable in by_device(trials, ["latency_ms"]):
        feasible = comparable[comparable["is_feasible"].astype(bool)]
        losses = losses_of(feasible, [_COST, _ACCURACY])
        fronts.append(feasible[non_dominated(losses)].sort_values(["latency_ms", "map"]))
        yield go.Scatter(
            x=in_shown_unit(fronts[-1], "latency_ms"),
            y=in_shown_unit(fronts[-1], "map"),
            mode="lines",
            line={"shape": line_shape(_COST), "width": 1.5, "color": line_colour, "dash": "dot" if is_ink else "solid"},
            name=f"front of {html.escape(name)}",
            showlegend=len(fronts) == 1,
            legendgroup=name,
            hoverinfo="skip",
            meta="ink" if is_ink else None,
        )
    front = pd.concat(fronts)
    for trials_of, size, opacity in ((trials.drop(front.index), 6, 0.4), (front, 10, 1.0)):
        yield go.Scatter(
            x=in_shown_unit(trials_of, "latency_ms"),
            y=in_shown_unit(trials_of, "map"),
            mode="markers",
            marker={"color": colour, "size": size, "opacity": opacity, "line": {"width": 1, "color": GROUND}},
            error_x=spread_bars(trials_of, "latency_ms"),
            hovertext=list(trials_of["hover"]),
            hoverinfo="text",
            legendgroup=name,
            showlegend=False,
            meta="ring",
        )


def _star(name: str, parent: pd.DataFrame, colour: str) -> go.Scatter:
    return go.Scatter(
        x=in_shown_unit(parent, "latency_ms"),
        y=in_shown_unit(parent, "map"),
        mode="markers",
        marker={"symbol": "star", "size": 17, "color": colour, "line": {"width": 1.2, "color": GROUND}},
        name=f"{html.escape(name)} as stage one found it",
        hovertext=list(parent["hover"]),
        hoverinfo="text",
        legendgroup=name,
        legendrank=AFTER_COLOURS,
        meta="ring",
    )
