"""Plotly figures of a study: the Pareto front among all finished trials, and the hypervolume over the search.

A trace's ``meta`` says which theme colour it takes, so that a page can redraw a figure in dark: ``ink`` for lines and
markers in the colour of the text, ``ring`` for markers parted from each other by a ring in the colour of the ground.
"""

import html
import itertools
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import optuna
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from smnas_optuna.reporting.pareto import (
    accuracy_and_costs,
    by_device,
    hypervolume_history,
    hypervolume_quantity,
    non_dominated,
    objectives_of,
    reference_point,
    trials_frame,
)
from smnas_optuna.reporting.quantity import MISSING, Quantity, quantity_of

ColourBy = Literal["input size", "backbone"]

_COLUMNS: Final = {"input size": "input_size", "backbone": "backbone_family"}
# Okabe and Ito's colours, told apart with every kind of colour vision, from cool to warm, and a brown.
_COLOURS: Final = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#8B6B4A")
_OTHER_COLOUR: Final = "#8A8F98"
_FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
_INK: Final = "#3A3F47"
_GROUND: Final = "#FFFFFF"
_PANEL_HEIGHT: Final = 480
_LINE_WIDTH: Final = 42  # characters that fit a narrow screen; Plotly does not break lines
_LEGEND_WIDTH: Final = 24
_DASHES: Final = ("solid", "dash", "dot", "dashdot")
_AFTER_COLOURS: Final = 1001
_HOVER_METRICS: Final = ("map", "map_50", "latency_ms", "flops", "params")


@dataclass(frozen=True)
class _Panel:
    """One plot: the columns along x and y, and the lines through the best points, one for each device."""

    row: int
    x: str
    y: str
    lines: dict[str, pd.DataFrame]
    line_shape: str


def front_figure(study: optuna.Study, colour_by: ColourBy = "input size") -> go.Figure:
    """Draw every finished trial's accuracy against its cost, with the Pareto front.

    Two objectives make one plot, more make one plot per cost, each with the front of that pair; a single objective
    is drawn over the trial number with the best value so far. Enqueued trials, the seeds of the search and those that
    were taken up after an interruption, are diamonds; trials off the front are small and faint; measured times have
    their spread as error bars.

    Args:
        study: A study with any objectives; trials without finite values are left out.
        colour_by: What the colours tell at first; the figure's buttons switch.
    """
    if colour_by not in get_args(ColourBy):
        raise ValueError(f"colour_by {colour_by!r}: expected one of {', '.join(get_args(ColourBy))}")
    frame = trials_frame(study)
    finished = frame[frame["is_finished"]].copy()
    metrics = list(dict.fromkeys([*_HOVER_METRICS, *(objective.name for objective in objectives_of(study))]))
    several_devices = finished["device"].nunique() > 1
    finished["hover"] = [_hover(trial, metrics, several_devices) for _, trial in finished.iterrows()]
    panels = _panels(finished, study)
    figure = make_subplots(rows=len(panels), cols=1, vertical_spacing=0.2 / len(panels))
    for panel in panels:
        for line in _lines(panel):
            figure.add_trace(line, row=panel.row, col=1)
        figure.update_xaxes(title_text=_axis_title(panel.x, finished), row=panel.row, col=1)
        figure.update_yaxes(title_text=_axis_title(panel.y, finished), row=panel.row, col=1)
    for key in _symbol_keys(finished, panels[0]):
        figure.add_trace(key.update(meta="ink", legendrank=_AFTER_COLOURS))
    for colouring in get_args(ColourBy):
        groups = list(_groups(finished, colouring))
        looks = [{"legendgroup": f"{colouring}: {label}", "visible": colouring == colour_by} for label, _, _ in groups]
        for (label, colour, _), look in zip(groups, looks, strict=True):
            figure.add_trace(_key(html.escape(label), {"color": colour, "size": 10}).update(look))
        for on_front, panel in itertools.product((False, True), panels):
            for (_, colour, group), look in zip(groups, looks, strict=True):
                trials = group[group["on_front"] == on_front]
                if not trials.empty:
                    markers = _markers(panel, trials, colour, on_front).update(look)
                    figure.add_trace(markers, row=panel.row, col=1)
    _dress(figure, _PANEL_HEIGHT * len(panels))
    figure.update_layout(legend_title_text=colour_by, updatemenus=[_switch(figure, colour_by)])
    return figure


def hypervolume_figure(study: optuna.Study) -> go.Figure:
    """Draw the hypervolume after each finished trial, over the worst value that each objective took in the study.

    Raises:
        ValueError: With a single objective, whose course :func:`front_figure` draws.
    """
    objectives = objectives_of(study)
    if len(objectives) < 2:
        raise ValueError(f"the hypervolume needs two objectives or more; the study has {len(objectives)}")
    numbers, values = hypervolume_history(study)
    hover = "trial %{x}<br>hypervolume %{y:.4g}<extra></extra>"
    line = {"shape": "hv", "width": 2, "color": _COLOURS[0]}
    quantity = hypervolume_quantity(objectives)
    shown = [value / quantity.scale for value in values]
    figure = go.Figure(go.Scatter(x=numbers, y=shown, mode="lines", line=line, hovertemplate=hover))
    _dress(figure, 360)
    figure.update_xaxes(title_text="trial number")
    figure.update_yaxes(title_text=html.escape(quantity.axis_title), rangemode="tozero")
    title = "<br>".join(map(html.escape, textwrap.wrap(reference_text(study), _LINE_WIDTH)))
    figure.update_layout(showlegend=False, title={"text": title, "font_size": 13, "x": 0})
    return figure


def reference_text(study: optuna.Study) -> str:
    """Say which reference point the hypervolume is measured from."""
    worst = zip(objectives_of(study), reference_point(study), strict=False)
    parts = [f"{objective.quantity.title} {objective.quantity.text_with_unit(value)}" for objective, value in worst]
    return f"Reference point, the worst values seen: {', '.join(parts) or MISSING}"


def _panels(finished: pd.DataFrame, study: optuna.Study) -> list[_Panel]:
    accuracy, costs = accuracy_and_costs(objectives_of(study))
    if not costs:
        lines = {}
        for name, trials in _by_device(finished, "best so far", accuracy.name):
            best = trials[accuracy.name].cummax() if accuracy.maximize else trials[accuracy.name].cummin()
            lines[name] = trials[["number"]].assign(**{accuracy.name: best})
        return [_Panel(1, "number", accuracy.name, lines, "hv")]
    panels = []
    title = "Pareto front" if len(costs) == 1 else "front of these two"
    for row, cost in enumerate(costs, start=1):
        lines = {}
        for name, trials in _by_device(finished, title, cost.name, accuracy.name):
            losses = trials[[cost.name, accuracy.name]].to_numpy(dtype=float) * [cost.sign, accuracy.sign]
            lines[name] = trials[non_dominated(losses)].sort_values([cost.name, accuracy.name])
        # The corners of the steps are the worst points that the front still dominates.
        shape = "vh" if cost.maximize else "hv"
        panels.append(_Panel(row, cost.name, accuracy.name, lines, shape))
    return panels


def _by_device(finished: pd.DataFrame, title: str, *objectives: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the trials of each device whose times are not comparable, with a title for their line."""
    parts = by_device(finished, objectives)
    for trials in parts:
        yield f"{title}, {trials['device'].iloc[0]}" if len(parts) > 1 else title, trials


def _lines(panel: _Panel) -> Iterator[go.Scatter]:
    for (name, line), dash in zip(panel.lines.items(), itertools.cycle(_DASHES), strict=False):
        yield go.Scatter(
            x=_shown(line, panel.x),
            y=_shown(line, panel.y),
            mode="lines",
            line={"shape": panel.line_shape, "width": 1.5, "color": _INK, "dash": dash},
            name="<br>".join(map(html.escape, textwrap.wrap(name, _LEGEND_WIDTH))),
            showlegend=panel.row == 1,
            legendrank=_AFTER_COLOURS,
            hoverinfo="skip",
            meta="ink",
        )


def _markers(panel: _Panel, trials: pd.DataFrame, colour: str, on_front: bool) -> go.Scatter:
    size, opacity, bar_opacity = (12, 1.0, 1.0) if on_front else (7, 0.45, 0.3)
    error_x = None
    if panel.x == "latency_ms" and trials["latency_spread_ms"].notna().any():
        red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
        bar_colour = f"rgba({red}, {green}, {blue}, {bar_opacity})"
        spread = list(trials["latency_spread_ms"].fillna(0))
        error_x = {"array": spread, "color": bar_colour, "thickness": 1.2, "width": 0}
    return go.Scatter(
        x=_shown(trials, panel.x),
        y=_shown(trials, panel.y),
        mode="markers",
        marker={
            "color": colour,
            "size": size,
            "opacity": opacity,
            "symbol": ["diamond" if enqueued else "circle" for enqueued in trials["enqueued"]],
            "line": {"width": 1 if on_front else 0, "color": _GROUND},
        },
        error_x=error_x,
        hovertext=list(trials["hover"]),
        hoverinfo="text",
        showlegend=False,
        meta="ring",
    )


def _symbol_keys(finished: pd.DataFrame, panel: _Panel) -> Iterator[go.Scatter]:
    """Explain in the legend the symbols that occur."""
    if not finished["on_front"].all():
        yield _key(
            "not the best" if panel.x == "number" else "off the front", {"color": _INK, "size": 7, "opacity": 0.45}
        )
    if finished["enqueued"].any():
        yield _key("enqueued", {"color": _INK, "size": 9, "symbol": "diamond"})


def _key(name: str, marker: dict[str, object]) -> go.Scatter:
    return go.Scatter(x=[None], y=[None], mode="markers", name=name, marker=marker, hoverinfo="skip")


def _groups(finished: pd.DataFrame, colouring: str) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield label, colour and trials of the commonest labels, in natural order, and of all others together."""
    labels = finished[_COLUMNS[colouring]]
    common = sorted(map(str, labels.value_counts().index[: len(_COLOURS)]), key=_natural_order)
    for label, colour in zip(common, _COLOURS, strict=False):
        yield label, colour, finished[labels == label]
    others = finished[~labels.isin(common)]
    if not others.empty:
        yield "other", _OTHER_COLOUR, others


def _natural_order(label: str) -> list[tuple[int, str]]:
    return [(int(digits or 0), text) for text, digits in re.findall(r"(\D+)|(\d+)", label.casefold())]


def _switch(figure: go.Figure, colour_by: ColourBy) -> dict[str, object]:
    buttons = []
    for colouring in get_args(ColourBy):
        groups = [trace.legendgroup for trace in figure.data]
        visible = [group is None or group.startswith(f"{colouring}: ") for group in groups]
        arguments = [{"visible": visible}, {"legend.title.text": colouring}]
        buttons.append({"label": f"by {colouring}", "method": "update", "args": arguments})
    active = get_args(ColourBy).index(colour_by)
    place = {"type": "buttons", "direction": "right", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
    return {"buttons": buttons, "active": active, "showactive": True, **place}


def _dress(figure: go.Figure, height: int) -> None:
    figure.update_layout(
        template="plotly_white",
        height=height,
        font={"family": _FONT, "color": _INK},
        margin={"l": 56, "r": 16, "t": 56, "b": 48},
        hovermode="closest",
        hoverlabel={"align": "left", "bgcolor": _GROUND, "font_family": _FONT},
        legend={"tracegroupgap": 0, "itemsizing": "trace"},
    )
    figure.update_xaxes(zeroline=False, automargin=True, title_standoff=8)
    figure.update_yaxes(zeroline=False, automargin=True, title_standoff=8)


def _shown(trials: pd.DataFrame, column: str) -> list[float]:
    return list(trials[column] / _quantity(column).scale)


def _quantity(column: str) -> Quantity:
    return Quantity("trial number") if column == "number" else quantity_of(column)


def _axis_title(column: str, finished: pd.DataFrame) -> str:
    lines = [_quantity(column).axis_title]
    devices = ", ".join(map(str, finished["device"].dropna().unique()))
    if column == "latency_ms" and devices:
        lines += textwrap.wrap(f"on {devices}", _LINE_WIDTH)
    return "<br>".join(map(html.escape, lines))


def _hover(trial: "pd.Series[Any]", metrics: list[str], with_device: bool) -> str:
    """Tell a trial in a few short lines of the small HTML that Plotly understands."""
    lines = [f"<b>trial {trial['number']}</b>{', enqueued' if trial['enqueued'] else ''}"]
    if with_device:
        lines += map(html.escape, textwrap.wrap(f"on {trial['device']}", _LINE_WIDTH))
    if isinstance(trial["architecture"], str):
        lines += map(html.escape, trial["architecture"].split())
    for name in metrics:
        quantity, value = quantity_of(name), trial[name]
        if not quantity.is_missing(value):
            text = quantity.text_with_spread(value, trial["latency_spread_ms"] if name == "latency_ms" else None)
            lines.append(html.escape(f"{quantity.title} {text} {quantity.unit}".rstrip()))
    return "<br>".join(lines)
