"""The style of figures: colours, fonts, axis titles and hover texts.

A trace's ``meta`` says which colours depend on the theme, so that a page can show the figure in dark mode: ``ink`` for
lines and markers with the colour of text, ``ring`` for markers with a ring of the background colour around them.
"""

import html
import textwrap
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go

from smnas_optuna.reporting.quantity import Quantity, measured_text, quantity_of

# Okabe and Ito's colours, distinguishable with colour blindness, from cool to warm, and a brown.
COLOURS: Final = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#8B6B4A")
OTHER_COLOUR: Final = "#8A8F98"
INK: Final = "#3A3F47"
GROUND: Final = "#FFFFFF"
LINE_WIDTH: Final = 42  # characters that fit a narrow screen; Plotly does not break lines
AFTER_COLOURS: Final = 1001  # legend rank

_FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
_LEGEND_WIDTH: Final = 24
_HOVER_METRICS: Final = ("map", "map_50", "latency_ms", "flops", "params")


def apply_style(figure: go.Figure, height: int) -> None:
    """Apply the common style to a figure of a height in pixels."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        font={"family": _FONT, "color": INK},
        margin={"l": 56, "r": 16, "t": 56, "b": 48},
        hovermode="closest",
        hoverlabel={"align": "left", "bgcolor": GROUND, "font_family": _FONT},
        legend={"tracegroupgap": 0, "itemsizing": "trace"},
    )
    figure.update_xaxes(zeroline=False, automargin=True, title_standoff=8)
    figure.update_yaxes(zeroline=False, automargin=True, title_standoff=8)


def menu(name: str, buttons: Sequence[dict[str, Any]], active: int, place: int) -> dict[str, Any]:
    """Return a dropdown menu to put above a figure.

    Args:
        name: Name of what is chosen.
        buttons: Plotly's buttons, each with label, method and args.
        active: Index of the button that is selected at the start.
        place: Position of the menu, 0 for the leftmost, 1 for the next.
    """
    return {
        "name": name,
        "buttons": list(buttons),
        "active": active,
        "type": "dropdown",
        "x": 0.28 * place,
        "xanchor": "left",
        "y": 1.02,
        "yanchor": "bottom",
    }


def in_shown_unit(trials: pd.DataFrame, column: str) -> list[float]:
    """Return a column's values in the unit in which they are shown."""
    return list(trials[column] / axis_quantity(column).scale)


def axis_quantity(column: str) -> Quantity:
    """Return the quantity with which a column is shown along an axis."""
    return Quantity("trial number") if column == "number" else quantity_of(column)


def axis_title(column: str, trials: pd.DataFrame) -> str:
    """Return the title of an axis; for inference time it names the devices of the trials."""
    lines = [axis_quantity(column).axis_title]
    devices = ", ".join(map(str, trials["device"].dropna().unique()))
    if column == "latency_ms" and devices:
        lines += textwrap.wrap(f"on {devices}", LINE_WIDTH)
    return "<br>".join(map(html.escape, lines))


def legend_name(text: str) -> str:
    """Return a text for the legend, wrapped and HTML-escaped."""
    return "<br>".join(map(html.escape, textwrap.wrap(text, _LEGEND_WIDTH)))


def legend_entry(name: str, marker: dict[str, object]) -> go.Scatter:
    """Return a trace without points, which adds an entry to the legend."""
    return go.Scatter(x=[None], y=[None], mode="markers", name=name, marker=marker, hoverinfo="skip")


def spread_bars(trials: pd.DataFrame, column: str) -> dict[str, Any] | None:
    """Return error bars for a column of measured times; None for other columns, or if no spread is known."""
    if column != "latency_ms" or not trials["latency_spread_ms"].notna().any():
        return None
    spread = list(trials["latency_spread_ms"].fillna(0))
    return {"array": spread, "color": "rgba(128, 136, 148, 0.65)", "thickness": 1.2, "width": 0}


def hover_texts(trials: pd.DataFrame, study_name: str, objectives: Sequence[str]) -> list[str]:
    """Return a hover text for each trial: its architecture, its metrics and how to export it.

    Texts are in Plotly's subset of HTML.

    Args:
        trials: Rows of ``StudyResults.frame``.
        study_name: Name of the study.
        objectives: Names of the objectives, which are shown in addition to the usual metrics.
    """
    metrics = list(dict.fromkeys([*_HOVER_METRICS, *objectives]))
    several_devices = trials["device"].nunique() > 1
    return [_hover(trial, study_name, metrics, several_devices) for trial in trials.to_dict("records")]


def _hover(trial: Mapping[Hashable, Any], study_name: str, metrics: Sequence[str], with_device: bool) -> str:
    lines = [f"on {trial['device']}"] if with_device else []
    if isinstance(trial["architecture"], str):
        lines.append(trial["architecture"])
    for name in metrics:
        quantity = quantity_of(name)
        if not quantity.is_missing(trial[name]):
            lines.append(f"{quantity.title} {measured_text(name, trial)} {quantity.unit}".rstrip())
    if isinstance(trial["reason"], str):
        lines.append(trial["reason"])
    if trial["is_finished"] and isinstance(trial["architecture"], str):
        lines.append(f"export with --study {study_name} --trial {trial['number']}")
    wrapped = [part for line in lines for part in textwrap.wrap(line, LINE_WIDTH, break_on_hyphens=False)]
    title = f"<b>trial {trial['number']}</b>{', enqueued' if trial['enqueued'] else ''}"
    return "<br>".join([title, *map(html.escape, wrapped)])
