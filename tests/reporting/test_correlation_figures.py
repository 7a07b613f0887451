import json
import math
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from plotly.colors import hex_to_rgb
from plotly.graph_objects import Figure

from smnas_optuna.reporting.correlation import Correlation, correlate
from smnas_optuna.reporting.correlation_figures import (
    colour_of,
    contrast,
    correlation_figure,
    correlations_figure,
    importance_figure,
    readable_on,
)
from smnas_optuna.reporting.factors import FACTORS, factors_frame
from smnas_optuna.reporting.importance import ModuleImportances, module_importances
from smnas_optuna.reporting.quantity import MISSING
from smnas_optuna.reporting.study_results import results_of
from tests.reporting.synthetic_study import make_study, modular_study, precision_of_head, structural_study
from tests.reporting.test_correlation import at, random_frame


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    return modular_study(tmp_path_factory.mktemp("study"))


def numbers(figure: Figure) -> dict[tuple[int, int], tuple[str, bool, str]]:
    """Return text, whether it is bold, and hover text of each shown cell, by column and row."""
    shown = [trace for trace in figure.data if trace.type == "scatter" and trace.visible is not False]
    return {
        (column, row): (text, trace.textfont.weight == "bold", hover)
        for trace in shown
        for column, row, text, hover in zip(trace.x, trace.y, trace.text, trace.hovertext, strict=True)
    }


def ground(figure: Figure, faded: bool) -> list[list[float | None]]:
    [trace] = [trace for trace in figure.data if trace.type == "heatmap" and (trace.opacity < 1) == faded]
    return [list(row) for row in trace.z]


def note(figure: Figure) -> str:
    [annotation] = figure.layout.annotations
    return str(annotation.text)


def below_diagonal(result: Correlation) -> list[tuple[int, int]]:
    return [(column, row) for row in range(len(result.matrix)) for column in range(row)]


def test_each_pair_has_one_cell_below_the_diagonal() -> None:
    result = correlate(random_frame(20, list(FACTORS), 0))
    figure = correlation_figure(result)
    assert sorted(numbers(figure)) == sorted(below_diagonal(result))
    assert list(figure.layout.xaxis.ticktext) == list(FACTORS)[:-1]
    assert list(figure.layout.yaxis.ticktext) == list(FACTORS)[1:]
    # The first row is at the top.
    assert figure.layout.xaxis.range == (-0.5, len(FACTORS) - 1.5)
    assert figure.layout.yaxis.range == (len(FACTORS) - 0.5, 0.5)
    assert figure.layout.yaxis.scaleanchor == "x"


def test_significant_cells_are_vivid_and_bold_and_others_faded() -> None:
    result = correlate(random_frame(20, list("abcdef"), 1))
    figure = correlation_figure(result)
    found = numbers(figure)
    vivid, faded = ground(figure, faded=False), ground(figure, faded=True)
    kinds = set()
    for column, row in below_diagonal(result):
        coefficient, significant = result.matrix.iat[row, column], bool(result.significant.iat[row, column])
        assert vivid[row][column] == (coefficient if significant else None)
        assert faded[row][column] == (None if significant else coefficient)
        assert found[column, row][1] == significant
        kinds.add(significant)
    assert kinds == {True, False}
    assert "faded: not significant<br>(Holm, \N{GREEK SMALL LETTER ALPHA} = 0.05)" in note(figure)


def test_the_colour_scale_is_centred_at_0() -> None:
    figure = correlation_figure(correlate(random_frame(20, "abc", 0)))
    assert {(trace.zmin, trace.zmid, trace.zmax) for trace in figure.data if trace.type == "heatmap"} == {(-1, 0, 1)}


@pytest.mark.parametrize(
    ("coefficient", "text"),
    [
        (0.734, ".73"),
        (-0.734, "\N{MINUS SIGN}.73"),
        (-0.001, ".00"),
        (1.0, "1.00"),
        (-0.999, "\N{MINUS SIGN}1.00"),
        (math.nan, MISSING),
    ],
)
def test_a_number_fits_its_cell(coefficient: float, text: str) -> None:
    result = correlate(random_frame(20, "abc", 0))
    result.matrix.iloc[1, 0] = coefficient
    result.significant.iloc[1, 0] = False
    assert numbers(correlation_figure(result))[0, 1][0] == text


def test_hover_texts_have_coefficient_trials_and_p_values() -> None:
    frame = random_frame(20, ["depth", "mAP", "FLOPs"], 0)
    frame.loc[:3, "depth"] = np.nan
    result = correlate(frame, "spearman", "FLOPs")
    [(_, _, text)] = numbers(correlation_figure(result)).values()
    coefficient, p = at(result.matrix, "mAP", "depth"), at(result.p_holm, "mAP", "depth")
    assert text.split("<br>") == [
        "<b>mAP and depth</b>",
        "mAP: COCO metric",
        "depth: number of blocks",
        f"partial Spearman \N{GREEK SMALL LETTER RHO} = {coefficient:.3f}, n = 16".replace("-", "\N{MINUS SIGN}"),
        f"p = {p:.2g}, after Holm {p:.2g}",
        "significant" if p <= 0.05 else "not significant",
    ]


def test_a_pair_without_correlation_is_a_dash_that_says_why() -> None:
    result = correlate(random_frame(20, "ab", 0).assign(width=64.0))
    figure = correlation_figure(result)
    text, bold, hover = numbers(figure)[0, 2]
    assert (text, bold) == (MISSING, False)
    assert "no correlation, n = 20<br>The same in all trials, so without<br>correlations: width." in hover
    assert ground(figure, faded=True)[2] == [None] * 3
    assert "no correlation" in note(figure)


def test_numbers_have_enough_contrast_on_their_cells() -> None:
    for coefficient in np.linspace(-1, 1, 201):
        colour = colour_of(coefficient)
        assert contrast(hex_to_rgb(readable_on(colour)), colour) >= 4.5


def test_contrast_is_computed_as_wcag_defines_it() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((10, 20, 30), (10, 20, 30)) == 1
    # The lightest grey with a contrast of 4.5 on white.
    assert contrast((0x76, 0x76, 0x76), (255, 255, 255)) == pytest.approx(4.54, abs=0.01)


def test_backgrounds_are_transparent_and_fonts_those_of_the_layout() -> None:
    for figure in (
        correlation_figure(correlate(random_frame(20, "abc", 1))),
        importance_figure(ModuleImportances(pd.DataFrame({"map": [0.4, 0.6]}, index=["neck", "head"]), ())),
    ):
        assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0, 0, 0, 0)"
        assert not [note for note in figure.layout.annotations if note.font.color]
        colours = [trace.textfont.color for trace in figure.data if trace.type == "scatter"]
        assert colours.count(None) == len(colours) // 2


def test_markup_in_the_name_of_a_factor_is_text() -> None:
    figure = correlation_figure(correlate(random_frame(20, ["<i>a", "b"], 0)))
    [(_, _, hover)] = numbers(figure).values()
    assert "&lt;i&gt;a" in hover
    assert figure.layout.xaxis.ticktext == ("&lt;i&gt;a",)


def test_without_correlations_the_figure_says_why() -> None:
    figure = correlation_figure(correlate(random_frame(2, "abc", 0)))
    assert note(figure) == "A correlation needs 3 trials or more;<br>found 2."
    assert not numbers(figure)
    assert not figure.layout.xaxis.visible
    assert not figure.layout.yaxis.visible


def test_one_menu_switches_method_trials_and_control(study: optuna.Study) -> None:
    figure = correlations_figure(results_of(study))
    [menu] = figure.layout.updatemenus
    assert [button.label for button in menu.buttons] == [
        f"{method}, {trials}{fixed}"
        for method in ("Pearson", "Spearman")
        for trials in ("all trials", "front")
        for fixed in ("", ", FLOPs fixed")
    ]
    assert menu.active == 0
    assert [trace.visible is not False for trace in figure.data] == list(menu.buttons[0].args[0]["visible"])


@pytest.mark.parametrize("choice", range(8))
def test_each_choice_of_the_menu_shows_the_same_as_a_separate_figure(study: optuna.Study, choice: int) -> None:
    figure = correlations_figure(results_of(study))
    method, trials, control = (
        ("pearson", "spearman")[choice // 4],
        ("all", "front")[choice // 2 % 2],
        (None, "FLOPs")[choice % 2],
    )
    expected = correlation_figure(
        correlate(factors_frame(results_of(study)), method, control, trials=trials)  # type: ignore[arg-type]
    )
    visible, changes = figure.layout.updatemenus[0].buttons[choice].args
    for trace, shown in zip(figure.data, visible["visible"], strict=True):
        trace.visible = shown
    # Applied as Plotly does, which replaces all annotations.
    figure.layout.annotations = ()
    figure.update_layout({name.replace(".", "_"): value for name, value in changes.items()})
    assert numbers(figure) == numbers(expected)
    assert figure.layout.annotations == expected.layout.annotations
    for axis in ("xaxis", "yaxis"):
        assert figure.layout[axis] == expected.layout[axis]


def test_the_figure_of_a_study_without_codes_says_why_it_is_empty(tmp_path: Path) -> None:
    figure = correlations_figure(results_of(structural_study(tmp_path, 12, precision_of_head)))
    assert note(figure).startswith("Left out, since they have no backbone<br>code: 12 of 12 trials.<br>")
    assert not figure.layout.updatemenus
    assert note(correlations_figure(results_of(make_study(tmp_path, name="empty")))).endswith("found 0.")


def test_bars_show_the_shares_of_each_objective(tmp_path: Path) -> None:
    result = module_importances(results_of(structural_study(tmp_path, 40, precision_of_head)))
    figure = importance_figure(result)
    assert [trace.name for trace in figure.data] == ["mAP", "inference time"]
    bars = figure.data[0]
    assert list(bars.y) == ["input size", "backbone", "neck", "RPN", "head"]
    assert list(bars.x) == list(result.shares["map"])
    assert bars.text[4] == f"{at(result.shares, 'head', 'map'):.0%}"
    assert set(figure.data[1].text) == {""}
    assert len({trace.marker.color for trace in figure.data}) == 2


def test_without_importances_the_figure_says_why(tmp_path: Path) -> None:
    figure = importance_figure(module_importances(results_of(structural_study(tmp_path, 9, precision_of_head))))
    assert note(figure) == "The effect of modules needs 10 trials or<br>more; found 9."


def test_the_figure_as_json_has_no_nan(study: optuna.Study) -> None:
    json.loads(correlations_figure(results_of(study)).to_json(), parse_constant=lambda name: pytest.fail(name))
