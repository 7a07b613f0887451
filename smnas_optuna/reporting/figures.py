"""Plotly figures of a study: the Pareto front among all trials, and the hypervolume over the search."""

import html
import itertools
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from smnas_optuna.reporting.hypervolume import Hypervolume
from smnas_optuna.reporting.study_results import (
    Objective,
    StudyResults,
    accuracy_and_costs,
    by_device,
    losses_of,
    natural_order,
)
from smnas_optuna.reporting.style import (
    AFTER_COLOURS,
    COLOURS,
    GROUND,
    INK,
    LINE_WIDTH,
    OTHER_COLOUR,
    apply_style,
    axis_quantity,
    axis_title,
    hover_texts,
    in_shown_unit,
    legend_entry,
    legend_name,
    menu,
    spread_bars,
)
from smnas_optuna.samplers.partial_order_pruning.dominance import non_dominated

# What colours can show, with the column of its values; the first one that differs among trials is shown at the start.
FACTORS: Final = {
    "input size": "input_size",
    "backbone": "backbone_family",
    "depth": "depth",
    "width": "width",
    "neck": "neck",
    "RPN": "rpn",
    "head": "head",
    "FLOPs": "flops",
    "device": "device",
}
_PANEL_HEIGHT: Final = 480
_DASHES: Final = ("solid", "dash", "dot", "dashdot")
_MOST_RANGES: Final = 5
_FEW_TRIALS: Final = 10
_FAINT: Final = 0.45
_TIME_MARGIN: Final = 1.4  # end of a time axis with published detectors, relative to the slowest trial


@dataclass(frozen=True)
class _Panel:
    """A plot of two columns.

    Args:
        row: Row of the plot in the figure, from 1.
        x: Column along x.
        y: Column along y.
        lines: Trials on the front, or best values so far, by the name of the line; one for each device.
        line_shape: Plotly's shape of the lines.
    """

    row: int
    x: str
    y: str
    lines: dict[str, pd.DataFrame]
    line_shape: str


@dataclass(frozen=True)
class _Colouring:
    """An assignment of colours to trials.

    Args:
        factor: What the colours show, a key of ``FACTORS``.
        colours: Colour of each label.
        labels: Label of each trial, by the index of the frame.
    """

    factor: str
    colours: dict[str, str]
    labels: pd.Series

    def of(self, trials: pd.DataFrame) -> list[str]:
        return [self.colours[label] for label in self.labels[trials.index]]


def front_figure(
    results: StudyResults,
    colour_by: str | None = None,
    *,
    known: Sequence[go.Scatter] = (),
    most_dominated: int | None = None,
) -> go.Figure:
    """Draw the accuracy of all finished trials against their costs, with the Pareto front.

    Each pair of objectives has a plot with the front of that pair; the accuracy is along y if it is one of them. A
    single objective is drawn over the trial number, with the best value so far. Enqueued trials, which are seeds of the
    search and retries of interrupted trials, are diamonds, and trials that violate a constraint are crosses. Trials off
    the front are small and faint. Measured times have their spread as error bars. Trials that were pruned before
    training are ticks at the bottom, at their cost. The constraints of the search are dotted lines.

    Args:
        results: Results of a study with any objectives. Trials without finite values are left out.
        colour_by: What colours show at the start, a key of ``FACTORS``; None for the first one that differs among
            trials. The figure has a menu to change it.
        known: Traces of published detectors, added to the plot of mAP against inference time.
        most_dominated: Largest number of trials off the front to draw, the latest ones; None to draw all.

    Raises:
        ValueError: ``colour_by`` is not a key of ``FACTORS``.
    """
    if colour_by is not None and colour_by not in FACTORS:
        raise ValueError(f"colour_by {colour_by!r}: expected one of {', '.join(FACTORS)}")
    frame, finished = results.frame, results.finished
    if most_dominated is not None:
        off_front = finished.index[~finished["on_front"]]
        finished = finished.drop(off_front[: max(0, len(off_front) - most_dominated)])
    pruned = frame[(frame["state"] == "pruned") & frame["flops"].notna()]
    finished, pruned = (
        trials.assign(hover=hover_texts(trials, results.name, results.metrics)) for trials in (finished, pruned)
    )
    colourings = _colourings(finished, colour_by)
    active = next(index for index, item in enumerate(colourings) if colour_by in (None, item.factor))
    panels = _panels(finished, results.objectives)
    figure = make_subplots(rows=len(panels), cols=1, vertical_spacing=0.2 / len(panels))
    for panel in panels:
        published = known if (panel.x, panel.y) == ("latency_ms", "map") and not finished.empty else ()
        for trace in (*_lines(panel), *published):
            figure.add_trace(trace, row=panel.row, col=1)
        if published:
            # Otherwise slow published detectors would squeeze the trials into a corner; a double click shows all.
            figure.update_xaxes(range=[0, _TIME_MARGIN * max(in_shown_unit(finished, panel.x))], row=panel.row, col=1)
        for ticks in _pruned(panel, pruned, finished):
            figure.add_trace(ticks, row=panel.row, col=1)
        for limit in _limits(panel, results):
            figure.add_shape(limit, row=panel.row, col=1)
        figure.update_xaxes(title_text=axis_title(panel.x, finished), row=panel.row, col=1)
        figure.update_yaxes(title_text=axis_title(panel.y, finished), row=panel.row, col=1)
    for symbol in _symbol_keys(finished, panels[0]):
        figure.add_trace(symbol.update(meta="ink", legendrank=AFTER_COLOURS))
    fixed = len(figure.data)
    for on_front, panel in itertools.product((False, True), panels):
        trials = finished[finished["on_front"] == on_front]
        if not trials.empty:
            markers = _markers(panel, trials, colourings[active].of(trials), on_front)
            figure.add_trace(markers, row=panel.row, col=1)
    points = range(fixed, len(figure.data))
    for index, colouring in enumerate(colourings):
        for label, colour in colouring.colours.items():
            entry = legend_entry(html.escape(label), {"color": colour, "size": 10})
            figure.add_trace(entry.update(legendgroup=colouring.factor, visible=index == active))
    apply_style(figure, _PANEL_HEIGHT * len(panels))
    menus = [_colour_menu(figure, finished, colourings, active, points)]
    if costs := [panel for panel in panels if panel.x != "number"]:
        menus.append(_scale_menu(costs))
    # A click on an entry of the legend would hide only the entry, since points are not grouped into traces by colour.
    figure.update_layout(legend_title_text=colourings[active].factor, updatemenus=menus, legend_itemclick=False)
    return figure


def hypervolume_figure(measured: Hypervolume) -> go.Figure:
    """Draw the hypervolume after each finished trial."""
    hover = "trial %{x}<br>hypervolume %{y:.3g}<extra></extra>"
    line = {"shape": "hv", "width": 2, "color": COLOURS[0]}
    figure = go.Figure(go.Scatter(x=measured.numbers, y=measured.values, mode="lines", line=line, hovertemplate=hover))
    apply_style(figure, 360)
    figure.update_xaxes(title_text="trial number", dtick=1 if len(measured.numbers) <= _FEW_TRIALS else None)
    whole = measured.basis or "the range of values seen"
    figure.update_yaxes(title_text=f"hypervolume (1 = {whole})", rangemode="tozero")
    title = "<br>".join(map(html.escape, textwrap.wrap(measured.reference_text, LINE_WIDTH)))
    figure.update_layout(showlegend=False, title={"text": title, "font_size": 13, "x": 0})
    return figure


def _panels(finished: pd.DataFrame, objectives: Sequence[Objective]) -> list[_Panel]:
    accuracy, costs = accuracy_and_costs(objectives)
    if not costs:
        lines = {}
        for name, trials in _by_device(finished, "best so far", accuracy.name):
            best = trials[accuracy.name].cummax() if accuracy.maximize else trials[accuracy.name].cummin()
            lines[name] = trials[["number"]].assign(**{accuracy.name: best})
        return [_Panel(1, "number", accuracy.name, lines, "hv")]
    panels = []
    title = "Pareto front" if len(costs) == 1 else "front of these two"
    pairs = [(cost, accuracy) for cost in costs] + list(itertools.combinations(costs, 2))
    for row, (x, y) in enumerate(pairs, start=1):
        lines = {}
        for name, trials in _by_device(finished, title, x.name, y.name):
            lines[name] = trials[non_dominated(losses_of(trials, [x, y]))].sort_values([x.name, y.name])
        panels.append(_Panel(row, x.name, y.name, lines, line_shape(x)))
    return panels


def line_shape(x: Objective) -> str:
    """Return Plotly's line shape for the boundary of the region that a front dominates, given the objective along x."""
    return "vh" if x.maximize else "hv"


def _by_device(finished: pd.DataFrame, title: str, *objectives: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the trials of each device, if times are an objective, with a title for their line."""
    parts = by_device(finished[finished["is_feasible"].astype(bool)], objectives)
    for trials in parts:
        yield f"{title}, {trials['device'].iloc[0]}" if len(parts) > 1 else title, trials


def _lines(panel: _Panel) -> Iterator[go.Scatter]:
    for (name, line), dash in zip(panel.lines.items(), itertools.cycle(_DASHES), strict=False):
        yield go.Scatter(
            x=in_shown_unit(line, panel.x),
            y=in_shown_unit(line, panel.y),
            mode="lines",
            line={"shape": panel.line_shape, "width": 1.5, "color": INK, "dash": dash},
            name=legend_name(name),
            showlegend=panel.row == 1,
            legendrank=AFTER_COLOURS,
            hoverinfo="skip",
            meta="ink",
        )


def _markers(panel: _Panel, trials: pd.DataFrame, colours: list[str], on_front: bool) -> go.Scatter:
    return go.Scatter(
        x=in_shown_unit(trials, panel.x),
        y=in_shown_unit(trials, panel.y),
        mode="markers",
        marker={
            "color": colours,
            "size": 12 if on_front else 7,
            "opacity": 1.0 if on_front else _FAINT,
            "symbol": [
                "x" if not is_feasible else "diamond" if enqueued else "circle"
                for is_feasible, enqueued in zip(trials["is_feasible"], trials["enqueued"], strict=True)
            ],
            "line": {"width": 1 if on_front else 0, "color": GROUND},
        },
        error_x=spread_bars(trials, panel.x),
        hovertext=list(trials["hover"]),
        hoverinfo="text",
        showlegend=False,
        meta="ring",
    )


def _pruned(panel: _Panel, pruned: pd.DataFrame, finished: pd.DataFrame) -> Iterator[go.Scatter]:
    """Draw trials that were pruned before training, which have no accuracy, at the bottom of a plot at their cost."""
    columns = ["latency_ms", "untrained_latency_ms"] if panel.x == "latency_ms" else [panel.x]
    cost = pruned[columns].bfill(axis=1).iloc[:, 0].dropna()
    if cost.empty or finished.empty or panel.x == "number" or panel.y in ("flops", "params", "latency_ms"):
        return
    values = finished[panel.y]
    bottom = values.min() - 0.06 * ((values.max() - values.min()) or 1.0)
    yield go.Scatter(
        x=list(cost / axis_quantity(panel.x).scale),
        y=[bottom / axis_quantity(panel.y).scale] * len(cost),
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 9, "color": INK, "line": {"width": 1.5}},
        opacity=_FAINT,
        hovertext=list(pruned.loc[cost.index, "hover"]),
        hoverinfo="text",
        name=legend_name("pruned before training"),
        showlegend=panel.row == 1,
        legendrank=AFTER_COLOURS,
        meta="ink",
    )


def _limits(panel: _Panel, results: StudyResults) -> Iterator[dict[str, Any]]:
    """Yield a dotted line across a plot for each constraint of the search on what the plot shows."""
    constraints = {} if results.search is None else results.search.recipe.constraints.model_dump(exclude_none=True)
    for name, limit in constraints.items():
        metric = name.partition("_")[2]
        value = limit / axis_quantity(metric).scale
        line = {"type": "line", "line": {"dash": "dot", "width": 1.5, "color": INK}, "layer": "below"}
        if metric == panel.x:
            yield {**line, "x0": value, "x1": value, "y0": 0, "y1": 1, "yref": "y domain"}
        elif metric == panel.y:
            yield {**line, "y0": value, "y1": value, "x0": 0, "x1": 1, "xref": "x domain"}


def _symbol_keys(finished: pd.DataFrame, panel: _Panel) -> Iterator[go.Scatter]:
    """Yield entries of the legend for the symbols that occur."""
    if not finished["on_front"].all():
        name = "not the best" if panel.x == "number" else "off the front"
        yield legend_entry(name, {"color": INK, "size": 7, "opacity": _FAINT})
    if finished["enqueued"].any():
        yield legend_entry("enqueued", {"color": INK, "size": 9, "symbol": "diamond"})
    if not finished["is_feasible"].all():
        yield legend_entry("violates a constraint", {"color": INK, "size": 8, "symbol": "x", "opacity": _FAINT})


def _colourings(finished: pd.DataFrame, requested: str | None) -> list[_Colouring]:
    """Return the colourings by factors that differ among trials, and the requested one; at least one."""
    colourings = []
    for factor, column in FACTORS.items():
        numeric = pd.api.types.is_numeric_dtype(finished[column]) and finished[column].notna().any()
        colouring = (_by_range if numeric else _by_name)(factor, finished, column)
        if len(colouring.colours) > 1 or factor == requested:
            colourings.append(colouring)
    first = next(iter(FACTORS))
    return colourings or [_by_name(first, finished, FACTORS[first])]


def _by_name(factor: str, finished: pd.DataFrame, column: str) -> _Colouring:
    """Assign a colour to each of the most frequent names, in natural order, and one to all others."""
    # A detector without a part, such as a neck, has the name "none"; a trial without an architecture has "other".
    absent = finished["input_size"].notna().map({True: "none", False: "other"})
    names = finished[column].where(finished[column].notna(), absent).astype(str)
    common = sorted(names[names != "other"].value_counts().index[: len(COLOURS)], key=natural_order)
    colours = dict(zip(common, COLOURS, strict=False))
    labels = names.where(names.isin(common), "other")
    if (labels == "other").any():
        colours["other"] = OTHER_COLOUR
    return _Colouring(factor, colours, labels)


def _by_range(factor: str, finished: pd.DataFrame, column: str) -> _Colouring:
    """Divide numbers into a few ranges with about the same number of trials, and assign colours from cool to warm."""
    values = finished[column]
    quantity = axis_quantity(column)
    few = sorted(values.dropna().unique())
    if len(few) <= _MOST_RANGES:
        bounds = [(value, value) for value in few]
        codes = values.map({value: place for place, value in enumerate(few)})
    else:
        codes = pd.qcut(values, _MOST_RANGES, labels=False, duplicates="drop")
        bounds = [(group.min(), group.max()) for _, group in values.groupby(codes)]
    texts = [
        quantity.text_with_unit(low) if low == high else f"{quantity.text(low)} to {quantity.text_with_unit(high)}"
        for low, high in bounds
    ]
    # Colours as far apart as possible, so that the order is visible.
    places = [round(index * (_MOST_RANGES - 1) / max(1, len(texts) - 1)) for index in range(len(texts))]
    colours = {text: COLOURS[place] for text, place in zip(texts, places, strict=True)}
    labels = codes.map(dict(enumerate(texts))).fillna("other")
    if (labels == "other").any():
        colours["other"] = OTHER_COLOUR
    return _Colouring(factor, colours, labels)


def _colour_menu(
    figure: go.Figure, finished: pd.DataFrame, colourings: Sequence[_Colouring], active: int, points: range
) -> dict[str, Any]:
    """Return a menu that changes the colours of the points and the entries of the legend."""
    keys = range(points.stop, len(figure.data))
    parts = [finished[finished["on_front"] == on_front] for on_front in (False, True)]
    drawn = [trials for trials in parts if not trials.empty]
    panels = len(points) // max(1, len(drawn))
    buttons = []
    for colouring in colourings:
        colours = [colouring.of(trials) for trials in drawn for _ in range(panels)]
        key_colours = [figure.data[index].marker.color for index in keys]
        visible = [True] * len(points) + [figure.data[index].legendgroup == colouring.factor for index in keys]
        change = {"marker.color": [*colours, *key_colours], "visible": visible}
        arguments = [change, {"legend.title.text": colouring.factor}, [*points, *keys]]
        buttons.append({"label": colouring.factor, "method": "update", "args": arguments})
    return menu("colours", buttons, active, 0)


def _scale_menu(panels: Sequence[_Panel]) -> dict[str, Any]:
    axes = [f"xaxis{panel.row if panel.row > 1 else ''}" for panel in panels]
    buttons = []
    for scale in ("linear", "log"):
        change = {f"{axis}.{name}": value for axis in axes for name, value in (("type", scale), ("autorange", True))}
        buttons.append({"label": scale, "method": "relayout", "args": [change]})
    return menu("cost axis", buttons, 0, 1)
