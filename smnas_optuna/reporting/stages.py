"""Both stages of a search in one figure: how far stage two lifts the front of stage one (SM-NAS, Fig. 4)."""

import html
import itertools
from collections.abc import Iterator, Sequence

import optuna
import pandas as pd
import plotly.graph_objects as go

from smnas_optuna.reporting.figures import line_shape
from smnas_optuna.reporting.pareto import Objective, by_device, non_dominated, objectives_of, trials_frame
from smnas_optuna.reporting.style import (
    AFTER_COLOURS,
    COLOURS,
    GROUND,
    INK,
    OTHER_COLOUR,
    axis_title,
    dress,
    hover_texts,
    shown,
    spread_bars,
)
from smnas_optuna.search.modular import refined_trial

_ACCURACY = Objective("map", maximize=True)
_COST = Objective("latency_ms", maximize=False)


def stages_figure(studies: Sequence[optuna.Study]) -> go.Figure | None:
    """Draw mAP against measured inference time for the studies of both stages of one search.

    Stage two searches over the backbone's FLOPs; its trials are timed all the same, so both stages have the same axes.
    Each candidate of stage one is a star in the colour of its own study of stage two, whose front of these two is a
    line.

    Args:
        studies: Stage one's first, then those of stage two, as ``study.relatives_of`` has them.

    Returns:
        The figure; None unless trials of both stages have a mAP and a time.
    """
    frames = {study.study_name: _measured(study) for study in studies}
    present = [study.study_name for study in studies if not frames[study.study_name].empty]
    trials = {study.study_name: refined_trial(study) for study in studies}
    parents = {name: trial for name, trial in trials.items() if trial is not None}
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
    dress(figure, 480)
    figure.update_layout(margin_t=24)
    figure.update_xaxes(title_text=axis_title("latency_ms", everything))
    figure.update_yaxes(title_text=axis_title("map", everything))
    return figure


def _measured(study: optuna.Study) -> pd.DataFrame:
    frame = trials_frame(study)
    frame = frame[frame["is_finished"] & frame["map"].notna() & frame["latency_ms"].notna()]
    names = [objective.name for objective in objectives_of(study)]
    return frame.assign(hover=hover_texts(frame, study.study_name, names))


def _traces(name: str, trials: pd.DataFrame, colour: str, line_colour: str) -> Iterator[go.Scatter]:
    fronts = []
    is_ink = line_colour == INK
    # Times of different devices make a front each.
    for comparable in by_device(trials, ["latency_ms"]):
        losses = comparable[["latency_ms", "map"]].to_numpy(dtype=float) * [_COST.sign, _ACCURACY.sign]
        fronts.append(comparable[non_dominated(losses)].sort_values(["latency_ms", "map"]))
        yield go.Scatter(
            x=shown(fronts[-1], "latency_ms"),
            y=shown(fronts[-1], "map"),
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
            x=shown(trials_of, "latency_ms"),
            y=shown(trials_of, "map"),
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
        x=shown(parent, "latency_ms"),
        y=shown(parent, "map"),
        mode="markers",
        marker={"symbol": "star", "size": 17, "color": colour, "line": {"width": 1.2, "color": GROUND}},
        name=f"{html.escape(name)} as stage one found it",
        hovertext=list(parent["hover"]),
        hoverinfo="text",
        legendgroup=name,
        legendrank=AFTER_COLOURS,
        meta="ring",
    )
