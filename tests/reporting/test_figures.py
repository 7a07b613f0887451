from pathlib import Path

import pytest
from optuna.trial import TrialState, create_trial
from plotly.graph_objects import Figure, Scatter

from smnas_optuna.reporting.figures import front_figure, hypervolume_figure
from smnas_optuna.reporting.hypervolume import measure_hypervolume
from smnas_optuna.reporting.study_results import results_of
from smnas_optuna.reporting.style import COLOURS, OTHER_COLOUR
from tests.reporting.synthetic_study import ARCHITECTURES, detectors, finished, make_study


def shown_points(figure: Figure) -> list[Scatter]:
    return [trace for trace in figure.data if trace.meta == "ring"]


def line_of(figure: Figure, name: str) -> Scatter:
    [line] = [trace for trace in figure.data if trace.name == name and trace.mode == "lines"]
    return line


def test_the_line_steps_through_the_front(tmp_path: Path) -> None:
    line = line_of(front_figure(results_of(make_study(tmp_path, detectors()))), "Pareto front")
    assert list(line.x) == [18.25, 40.5, 52.0]
    assert list(line.y) == [0.211, 0.365, 0.401]
    assert line.line.shape == "hv"


def test_the_line_of_a_maximised_cost_steps_the_other_way(tmp_path: Path) -> None:
    points = [finished(0.4, 20.0), finished(0.2, 60.0), finished(0.1, 30.0)]
    study = make_study(tmp_path, points, metrics=("map", "images_per_second"), directions=("maximize", "maximize"))
    line = line_of(front_figure(results_of(study)), "Pareto front")
    assert list(line.x) == [20.0, 60.0]
    assert line.line.shape == "vh"


def test_times_of_different_devices_have_a_front_each(tmp_path: Path) -> None:
    points = {"A": [(0.3, 20.0), (0.2, 30.0)], "B": [(0.4, 9.0), (0.1, 5.0), (0.05, 7.0)]}
    trials = [finished(*point, device=device) for device in points for point in points[device]]
    study = make_study(tmp_path, trials)
    figure = front_figure(results_of(study))
    assert list(line_of(figure, "Pareto front, A").x) == [20.0]
    assert list(line_of(figure, "Pareto front, B").x) == [5.0, 9.0]
    assert all("<br>on " in text for trace in shown_points(figure) for text in trace.hovertext)
    assert results_of(study).front["number"].tolist() == [3, 2, 0]


def test_hover_texts_have_the_trial_its_architecture_and_its_metrics(tmp_path: Path) -> None:
    figure = front_figure(results_of(make_study(tmp_path, detectors())))
    texts = {text.split("<br>")[0]: text for trace in shown_points(figure) for text in trace.hovertext}
    assert set(texts) == {"<b>trial 0</b>, enqueued", *(f"<b>trial {number}</b>" for number in range(1, 5))}
    assert texts["<b>trial 2</b>"].split("<br>")[1:] == [
        ARCHITECTURES[2],
        "mAP 0.365",
        "AP50 0.547",
        "inference time 40.5 ± 0.8 ms",
        "FLOPs 21.6 G",
        "params 25.6 M",
        "export with --study coco/structural",
        "--trial 2",
    ]
    assert f" {ARCHITECTURES[4]} " in texts["<b>trial 4</b>"].replace("<br>", " ")


def test_markup_in_the_database_is_text_in_the_figure(tmp_path: Path) -> None:
    trials = [finished(0.3, 20.0, architecture="<script>alert(1)</script>", device="<b>GPU</b>")]
    study = make_study(tmp_path, trials, metrics=("<i>map</i>", "latency_ms"))
    figure = front_figure(results_of(study))
    [trace] = shown_points(figure)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in trace.hovertext[0]
    assert figure.layout.xaxis.title.text == "inference time (ms)<br>on &lt;b&gt;GPU&lt;/b&gt;"
    assert figure.layout.yaxis.title.text == "&lt;i&gt;map&lt;/i&gt;"


def legend_of(figure: Figure) -> dict[str, str]:
    """Return the colour of each label in the legend."""
    return {trace.name: trace.marker.color for trace in figure.data if trace.legendgroup and trace.visible}


def test_trials_pruned_before_training_are_at_the_bottom_at_their_cost(tmp_path: Path) -> None:
    costs = {"architecture": ARCHITECTURES[0], "flops": 3e9, "untrained_latency_ms": 77.0, "reason": "dominated"}
    duplicate = {"architecture": ARCHITECTURES[0], "reason": "duplicate"}
    pruned = [create_trial(state=TrialState.PRUNED, user_attrs=attributes) for attributes in (costs, duplicate)]
    figure = front_figure(results_of(make_study(tmp_path, [*detectors(), *pruned])))
    [ticks] = [trace for trace in figure.data if trace.name == "pruned before training"]
    assert list(ticks.x) == [77.0]
    assert ticks.y[0] < min(y for trace in shown_points(figure) for y in trace.y)
    assert "dominated" in ticks.hovertext[0]


def test_a_menu_colours_the_points_and_changes_the_legend(tmp_path: Path) -> None:
    figure = front_figure(results_of(make_study(tmp_path, detectors())))
    menu = figure.layout.updatemenus[0]
    assert menu.name == "colours"
    assert [button.label for button in menu.buttons] == [
        *["input size", "backbone", "depth", "width", "neck", "RPN", "head", "FLOPs"],
    ]
    for button in menu.buttons:
        change, layout, indices = button.args
        assert layout == {"legend.title.text": button.label}
        drawn = Figure(figure)
        for index, colours, visible in zip(indices, change["marker.color"], change["visible"], strict=True):
            drawn.data[index].update(marker_color=colours, visible=visible)
        explained = set(legend_of(drawn).values())
        assert {colour for trace in shown_points(drawn) for colour in trace.marker.color} == explained
        assert sum(len(trace.x) for trace in shown_points(drawn)) == 5


def test_the_legend_names_input_sizes_in_order_and_families_of_backbones(tmp_path: Path) -> None:
    study = make_study(tmp_path, detectors())
    assert list(legend_of(front_figure(results_of(study)))) == ["512x512", "800x600", "1333x800"]
    families = ["basicblock", "MobileNetV2", "ResNet18", "ResNet50", "ResNeXt101"]
    assert list(legend_of(front_figure(results_of(study), "backbone"))) == families
    assert list(legend_of(front_figure(results_of(study), "neck"))) == [
        *["FPN(P1-P5,c=128)", "FPN(P1-P5,c=256)", "FPN(P2-P3:P2-P5,c=64)", "FPN(P2-P5,c=256)", "none"],
    ]


def test_a_number_is_coloured_in_ranges_from_cool_to_warm(tmp_path: Path) -> None:
    trials = [finished(0.3, float(size), flops=size * 1e9) for size in range(1, 51)]
    figure = front_figure(results_of(make_study(tmp_path, trials)), "FLOPs")
    assert list(legend_of(figure)) == [
        "1.00 to 10.0 G",
        "11.0 to 20.0 G",
        "21.0 to 30.0 G",
        "31.0 to 40.0 G",
        "41.0 to 50.0 G",
    ]
    assert list(legend_of(figure).values()) == list(COLOURS[:5])


def test_if_there_are_more_labels_than_colours_the_rarest_are_other(tmp_path: Path) -> None:
    text = "{0}x{0} ResNet50 RPN 2FC"
    trials = [finished(0.3, float(size), architecture=text.format(size)) for size in range(100, 110) for _ in "ab"]
    study = make_study(tmp_path, [*trials, finished(0.3, 7.0, architecture="unreadable")])
    figure = front_figure(results_of(study))
    assert len(legend_of(figure)) == 8
    assert legend_of(figure)["other"] == OTHER_COLOUR
    assert sum(len(trace.x) for trace in shown_points(figure)) == 21


def test_the_cost_axes_can_be_logarithmic(tmp_path: Path) -> None:
    trials = [finished(0.4, 20.0, 5e9), finished(0.3, 10.0, 6e9)]
    study = make_study(
        tmp_path, trials, metrics=("map", "latency_ms", "flops"), directions=("maximize", "minimize", "minimize")
    )
    menu = front_figure(results_of(study)).layout.updatemenus[1]
    assert [button.label for button in menu.buttons] == ["linear", "log"]
    [change] = menu.buttons[1].args
    assert {key: value for key, value in change.items() if key.endswith(".type")} == {
        "xaxis.type": "log",
        "xaxis2.type": "log",
        "xaxis3.type": "log",
    }


def test_published_detectors_do_not_squeeze_the_studys_detectors(tmp_path: Path) -> None:
    slow = Scatter(x=[300.0], y=[0.4])
    figure = front_figure(results_of(make_study(tmp_path, detectors())), known=[slow])
    assert 300.0 in [x for trace in figure.data for x in trace.x]
    assert 108.1 < figure.layout.xaxis.range[1] < 200.0


def test_the_dominated_trials_that_are_drawn_can_be_limited_to_the_latest(tmp_path: Path) -> None:
    trials = [finished(0.5, 1.0), *(finished(0.1, float(time)) for time in range(10, 30))]
    points = shown_points(front_figure(results_of(make_study(tmp_path, trials)), most_dominated=3))
    assert sorted(x for trace in points for x in trace.x) == [1.0, 27.0, 28.0, 29.0]


def test_enqueued_trials_are_diamonds_and_dominated_trials_are_small_and_faint(tmp_path: Path) -> None:
    points = {}
    for trace in shown_points(front_figure(results_of(make_study(tmp_path, detectors())))):
        for x, symbol in zip(trace.x, trace.marker.symbol, strict=True):
            points[x] = (symbol, trace.marker.size, trace.marker.opacity)
    on_front, dominated = ("circle", 12, 1.0), ("circle", 7, 0.45)
    assert points == {18.25: ("diamond", 12, 1.0), 21.5: dominated, 40.5: on_front, 52.0: on_front, 108.1: dominated}


def test_error_bars_show_the_recorded_spread(tmp_path: Path) -> None:
    trials = [finished(0.3, 20.0, latency_spread_ms=0.5), finished(0.2, 10.0), finished(0.1, 30.0)]
    on_front, dominated = sorted(
        shown_points(front_figure(results_of(make_study(tmp_path, trials)))), key=lambda trace: -len(trace.x)
    )
    assert list(on_front.error_x.array) == [0.5, 0.0]
    assert dominated.error_x.array is None


def test_three_objectives_are_drawn_in_a_panel_per_pair(tmp_path: Path) -> None:
    trials = [finished(0.4, 20.0, 5e9), finished(0.3, 10.0, 6e9), finished(0.2, 15.0, 4e9), finished(0.1, 30.0, 9e9)]
    study = make_study(
        tmp_path, trials, metrics=("map", "latency_ms", "flops"), directions=("maximize", "minimize", "minimize")
    )
    figure = front_figure(results_of(study))
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert [list(line.x) for line in lines] == [[10.0, 20.0], [4.0, 5.0], [10.0, 15.0]]
    assert [list(line.y) for line in lines] == [[0.3, 0.4], [0.2, 0.4], [6.0, 4.0]]
    assert figure.layout.xaxis2.title.text == "FLOPs (G, multiply-adds)"
    assert figure.layout.yaxis3.title.text == "FLOPs (G, multiply-adds)"
    assert len([trace for trace in shown_points(figure) if trace.xaxis == "x2"]) == 2


def test_one_objective_is_drawn_over_the_trials_with_the_best_so_far(tmp_path: Path) -> None:
    trials = [finished(value) for value in (0.1, 0.3, 0.2, 0.4)]
    study = make_study(tmp_path, trials, metrics=("map",), directions=("maximize",))
    line = line_of(front_figure(results_of(study)), "best so far")
    assert list(line.x) == [0, 1, 2, 3]
    assert list(line.y) == [0.1, 0.3, 0.3, 0.4]


def test_the_hypervolume_is_drawn_with_its_reference_point(tmp_path: Path) -> None:
    trials = [finished(0.2, 10e9), finished(0.4, 30e9), finished(0.1, 50e9)]
    measured = measure_hypervolume(results_of(make_study(tmp_path, trials, metrics=("map", "flops"))))
    assert measured is not None
    figure = hypervolume_figure(measured)
    [line] = figure.data
    assert list(line.x) == [0, 1, 2]
    assert list(line.y) == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert figure.layout.yaxis.title.text == "hypervolume (1 = the range of values seen)"
    title = figure.layout.title.text.replace("<br>", " ")
    assert title == "Reference point, the worst values so far: mAP 0.100, FLOPs 50.0 G"


def test_an_unknown_factor_to_colour_by_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="colour_by 'taste': expected one of input size, backbone"):
        front_figure(results_of(make_study(tmp_path)), "taste")


def test_a_study_without_finished_trials_makes_an_empty_figure(tmp_path: Path) -> None:
    assert shown_points(front_figure(results_of(make_study(tmp_path)))) == []
