"""Plotly figures of correlations, as heat maps, and of the importance of modules, as bars."""

import html
import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb, make_colorscale, sample_colorscale, unlabel_rgb

from smnas_optuna.reporting.correlation import Correlation, Method, Trials, correlate
from smnas_optuna.reporting.factors import FACTORS, factors_frame
from smnas_optuna.reporting.importance import ModuleImportances
from smnas_optuna.reporting.quantity import MISSING, quantity_of
from smnas_optuna.reporting.study_results import StudyResults
from smnas_optuna.reporting.style import COLOURS, LINE_WIDTH, apply_style, menu
from smnas_optuna.reporting.trial_table import PART_TITLES

CONTROL: Final = "FLOPs"

# ColorBrewer's RdBu, distinguishable with colour blindness: red for -1, blue for 1.
_SCALE: Final = ("#B2182B", "#EF8A62", "#F7F7F7", "#67A9CF", "#2166AC")
_FADED: Final = 0.25  # opacity
_BLACK: Final = "#000000"
_WHITE: Final = "#FFFFFF"
_CLEAR: Final = "rgba(0, 0, 0, 0)"
_HEIGHT: Final = 460
_EMPTY_HEIGHT: Final = 160
_FONT_SIZE: Final = 11  # four characters fit a cell on a narrow screen
_METHODS: Final[dict[Method, str]] = {"pearson": "Pearson", "spearman": "Spearman"}
_SYMBOLS: Final[dict[Method, str]] = {"pearson": "r", "spearman": "\N{GREEK SMALL LETTER RHO}"}
_TRIALS: Final[dict[Trials, str]] = {"all": "all trials", "front": "front"}


@dataclass(frozen=True)
class _Cell:
    """A cell below the diagonal: the correlation of two factors.

    Args:
        column: Index of the factor along x.
        row: Index of the factor along y.
        coefficient: Correlation coefficient; NaN if undefined.
        significant: Whether the correlation is significant after Holm's correction.
        hover: Hover text, in Plotly's subset of HTML.
    """

    column: int
    row: int
    coefficient: float
    significant: bool
    hover: str

    @property
    def text(self) -> str:
        """The coefficient to two decimals without the zero before the point, ``-.42``."""
        if math.isnan(self.coefficient):
            return MISSING
        digits = f"{abs(self.coefficient):.2f}".removeprefix("0")
        return f"\N{MINUS SIGN}{digits}" if self.coefficient < 0 and digits != ".00" else digits


def correlation_figure(result: Correlation) -> go.Figure:
    """Draw correlations as the lower triangle of a matrix, with a coloured cell and the coefficient for each pair.

    Colours range from red for -1 to blue for 1. Significant cells have bold numbers; the others are faded. A dash marks
    an undefined correlation. If all are undefined, the figure shows the result's remarks instead.
    """
    figure = go.Figure(_traces(result))
    apply_style(figure, _EMPTY_HEIGHT if _is_empty(result) else _HEIGHT)
    figure.update_layout(
        paper_bgcolor=_CLEAR,
        plot_bgcolor=_CLEAR,
        showlegend=False,
        dragmode=False,
        hoverdistance=30,  # pixels from the middle of a cell
        margin={"l": 8, "r": 8, "t": 48, "b": 8},
    )
    plain = {"showgrid": False, "showline": False, "ticks": "", "constrain": "domain", "fixedrange": True}
    figure.update_xaxes(**plain, tickangle=-45, constraintoward="left")
    figure.update_yaxes(**plain, scaleanchor="x", constraintoward="top", ticklabelstandoff=4)
    figure.update_layout(_axes(result), annotations=_notes(result))
    return figure


def correlations_figure(results: StudyResults) -> go.Figure:
    """Draw a study's correlations, with one menu for the method, the trials and whether FLOPs are held fixed.

    The menu's choices are called ``<method>, <trials>[, FLOPs fixed]``. The first one, shown at the start, is Pearson's
    method for all trials. If it has no correlations, the figure says why and has no menu.
    """
    frame = factors_frame(results)
    settings = itertools.product(_METHODS, _TRIALS, (None, CONTROL))
    correlations = [correlate(frame, method, control, trials=trials) for method, trials, control in settings]
    figure = correlation_figure(correlations[0])
    if _is_empty(correlations[0]):
        return figure
    for result in correlations[1:]:
        figure.add_traces([trace.update(visible=False) for trace in _traces(result)])
    choice_of_trace = [index for index, result in enumerate(correlations) for _ in _traces(result)]
    buttons = [
        {
            "label": _label(result),
            "method": "update",
            "args": [{"visible": [choice == index for choice in choice_of_trace]}, _layout_changes(result)],
        }
        for index, result in enumerate(correlations)
    ]
    figure.update_layout(updatemenus=[menu("correlation", buttons, 0, 0)])
    return figure


def importance_figure(result: ModuleImportances) -> go.Figure:
    """Draw a bar for each module and objective: the share of the objective's variation that the module explains."""
    modules = [PART_TITLES[str(part)] for part in result.shares.index]
    figure = go.Figure()
    for name, colour in zip(map(str, result.shares), itertools.cycle(COLOURS[::3])):
        title = html.escape(quantity_of(name).title)
        shares = result.shares[name]
        figure.add_bar(
            x=list(shares),
            y=modules,
            orientation="h",
            name=title,
            marker={"color": colour, "line_width": 0},
            text=["" if math.isnan(share) else f"{share:.0%}" for share in shares],
            textposition="outside",
            cliponaxis=False,
            hovertemplate=f"%{{y}}: %{{x:.1%}} of the variation of {title}<extra></extra>",
        )
    apply_style(figure, 380)
    figure.update_layout(
        paper_bgcolor=_CLEAR,
        plot_bgcolor=_CLEAR,
        dragmode=False,
        barmode="group",
        bargap=0.3,
        margin={"l": 8, "r": 40, "t": 40, "b": 8},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    )
    figure.update_xaxes(title_text="share of the variation", tickformat=".0%", rangemode="tozero", fixedrange=True)
    figure.update_yaxes(autorange="reversed", showgrid=False, fixedrange=True)
    if result.shares.isna().to_numpy().all():
        figure.update_layout(annotations=[_sentences(result.remarks)], showlegend=False, height=_EMPTY_HEIGHT)
        figure.update_xaxes(visible=False)
        figure.update_yaxes(visible=False)
    return figure


def _traces(result: Correlation) -> list[go.Heatmap | go.Scatter]:
    """Return the cells' colours and numbers, first of significant cells, then of the others; empty without any."""
    cells = [] if _is_empty(result) else list(_cells(result))
    vivid = [cell for cell in cells if cell.significant]
    faded = [cell for cell in cells if not cell.significant]
    colours = [readable_on(colour_of(cell.coefficient)) for cell in vivid]
    size = len(result.matrix)
    return [
        _colours(vivid, size, 1.0),
        _colours(faded, size, _FADED),
        _numbers(vivid, {"size": _FONT_SIZE, "weight": "bold", "color": colours}),
        # Numbers on faded cells have the colour of the layout's font, which suits light and dark backgrounds.
        _numbers(faded, {"size": _FONT_SIZE}),
    ]


def _colours(cells: Sequence[_Cell], size: int, opacity: float) -> go.Heatmap:
    # The whole grid is given, since Plotly widens the neighbours of absent columns.
    grid: list[list[float | None]] = [[None] * size for _ in range(size)]
    for cell in cells:
        grid[cell.row][cell.column] = None if math.isnan(cell.coefficient) else cell.coefficient
    return go.Heatmap(
        z=grid,
        zmin=-1,
        zmid=0,
        zmax=1,
        colorscale=list(_SCALE),
        opacity=opacity,
        xgap=1,
        ygap=1,
        showscale=False,
        hoverinfo="skip",
    )


def _numbers(cells: Sequence[_Cell], font: dict[str, Any]) -> go.Scatter:
    return go.Scatter(
        x=[cell.column for cell in cells],
        y=[cell.row for cell in cells],
        mode="text",
        text=[cell.text for cell in cells],
        textfont=font,
        hovertext=[cell.hover for cell in cells],
        hoverinfo="text",
        cliponaxis=False,
    )


def _cells(result: Correlation) -> Iterator[_Cell]:
    names = list(map(str, result.matrix))
    for column, row in itertools.combinations(range(len(names)), 2):
        at = (row, column)
        coefficient = float(result.matrix.to_numpy()[at])
        significant = bool(result.significant.to_numpy()[at])
        lines = [f"<b>{html.escape(f'{names[row]} and {names[column]}')}</b>"]
        lines += [html.escape(f"{name}: {FACTORS[name]}") for name in (names[row], names[column]) if name in FACTORS]
        n = f"n = {result.n.to_numpy()[at]}"
        if math.isnan(coefficient):
            lines += [f"no correlation, {n}", *_lines(result.remarks)]
        else:
            signed = f"{coefficient:.3f}".replace("-", "\N{MINUS SIGN}")
            partial = "partial " if result.control else ""
            lines += [
                f"{partial}{_METHODS[result.method]} {_SYMBOLS[result.method]} = {signed}, {n}",
                f"p = {result.p_values.to_numpy()[at]:.2g}, after Holm {result.p_holm.to_numpy()[at]:.2g}",
                "significant" if significant else "not significant",
            ]
        yield _Cell(column, row, coefficient, significant, "<br>".join(lines))


def _is_empty(result: Correlation) -> bool:
    return bool(result.p_values.isna().to_numpy().all())


def _axes(result: Correlation) -> dict[str, dict[str, Any]]:
    """Return the axes of a result; columns are all factors except the last, rows all except the first."""
    names = list(map(html.escape, map(str, result.matrix)))
    last = len(names) - 1
    columns = {"tickvals": list(range(last)), "ticktext": names[:-1], "range": [-0.5, last - 0.5]}
    rows = {"tickvals": list(range(1, last + 1)), "ticktext": names[1:], "range": [last + 0.5, 0.5]}
    return {name: {**axis, "visible": not _is_empty(result)} for name, axis in (("xaxis", columns), ("yaxis", rows))}


def _notes(result: Correlation) -> list[dict[str, Any]]:
    """Return the legend above the diagonal, or the remarks if there are no correlations."""
    if _is_empty(result):
        return [_sentences(result.remarks)]
    cells = list(_cells(result))
    missing = [math.isnan(cell.coefficient) for cell in cells]
    counts = [int(n) for n in result.n.to_numpy()[np.tril_indices(len(result.n), k=-1)]]
    fewest, most = min(counts), max(counts)
    swatches = "".join(f'<span style="color:{colour}">\N{BLACK SQUARE}</span>' for colour in _SCALE)
    lines = [
        f"<b>{html.escape(_label(result))}</b>",
        f"n = {most}" if fewest == most else f"n = {fewest} to {most}",
        f"\N{MINUS SIGN}1 {swatches} +1",
    ]
    if not all(cell.significant or gap for cell, gap in zip(cells, missing, strict=True)):
        lines += ["faded: not significant", f"(Holm, \N{GREEK SMALL LETTER ALPHA} = {result.alpha:g})"]
    if any(missing):
        lines.append(f"{MISSING} no correlation")
    place = {"x": len(result.matrix) - 1.5, "xanchor": "right", "y": 0.5, "yanchor": "top"}
    return [{"text": "<br>".join(lines), "showarrow": False, "align": "right", "xref": "x", "yref": "y", **place}]


def _sentences(remarks: Sequence[str]) -> dict[str, Any]:
    """Return the annotation of a figure that has nothing to draw."""
    place = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "top"}
    return {
        "text": "<br>".join(_lines(remarks)),
        "showarrow": False,
        "align": "left",
        "xref": "paper",
        "yref": "paper",
        **place,
    }


def _lines(remarks: Sequence[str]) -> list[str]:
    return [html.escape(line) for remark in remarks for line in textwrap.wrap(remark, LINE_WIDTH)]


def _label(result: Correlation) -> str:
    fixed = [f"{result.control} fixed"] if result.control else []
    return ", ".join([_METHODS[result.method], _TRIALS[result.trials], *fixed])


def _layout_changes(result: Correlation) -> dict[str, Any]:
    """Return the changes to the layout that a menu's choice makes to show a result."""
    changes = {f"{axis}.{name}": value for axis, values in _axes(result).items() for name, value in values.items()}
    return {**changes, "annotations": _notes(result)}


def colour_of(coefficient: float) -> tuple[float, float, float]:
    """Return the colour of a significant cell, as red, green and blue from 0 to 255."""
    [colour] = sample_colorscale(make_colorscale(_SCALE), [(coefficient + 1) / 2])
    red, green, blue = unlabel_rgb(colour)
    return red, green, blue


def readable_on(colour: tuple[float, float, float]) -> str:
    """Return black or white, whichever has the higher contrast on a colour, as WCAG 2 defines contrast."""
    return max((_BLACK, _WHITE), key=lambda text: contrast(hex_to_rgb(text), colour))


def contrast(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    """Return the contrast of two colours as WCAG 2 defines it, from 1 (equal) to 21 (black and white)."""
    dark, light = sorted(map(_luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: tuple[float, float, float]) -> float:
    linear = [
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4
        for share in (channel / 255 for channel in colour)
    ]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
