from pathlib import Path

import pytest
from plotly.graph_objects import Figure, Scatter

from smnas_optuna.reporting.figures import front_figure, hypervolume_figure
from smnas_optuna.reporting.pareto import pareto_front
from tests.reporting.synthetic_study import ARCHITECTURES, detectors, finished, make_study


def shown_points(figure: Figure) -> list[Scatter]:
    return [trace for trace in figure.data if trace.hovertext and trace.visible]


def line_of(figure: Figure, name: str) -> Scatter:
    [line] = [trace for trace in figure.data if trace.name == name and trace.mode == "lines"]
    return line


def test_the_line_steps_through_the_front(tmp_path: Path) -> None:
    line = line_of(front_figure(make_study(tmp_path, detectors())), "Pareto front")
    assert list(line.x) == [18.25, 40.5, 52.0]
    assert list(line.y) == [0.211, 0.365, 0.401]
    assert line.line.shape == "hv"


def test_the_line_of_a_maximised_cost_steps_the_other_way(tmp_path: Path) -> None:
    points = [finished(0.4, 20.0), finished(0.2, 60.0), finished(0.1, 30.0)]
    study = make_study(tmp_path, points, metrics=("map", "images_per_second"), directions=("maximize", "maximize"))
    line = line_of(front_figure(study), "Pareto front")
    assert list(line.x) == [20.0, 60.0]
    assert line.line.shape == "vh"


def test_times_of_different_devices_have_a_front_each(tmp_path: Path) -> None:
    points = {"A": [(0.3, 20.0), (0.2, 30.0)], "B": [(0.4, 9.0), (0.1, 5.0), (0.05, 7.0)]}
    trials = [finished(*point, device=device) for device in points for point in points[device]]
    study = make_study(tmp_path, trials)
    figure = front_figure(study)
    assert list(line_of(figure, "Pareto front, A").x) == [20.0]
    assert list(line_of(figure, "Pareto front, B").x) == [5.0, 9.0]
    assert all("<br>on " in text for trace in shown_points(figure) for text in trace.hovertext)
    assert pareto_front(study)["number"].tolist() == [3, 2, 0]


def test_hovering_tells_the_trial_its_architecture_and_what_was_measured(tmp_path: Path) -> None:
    figure = front_figure(make_study(tmp_path, detectors()))
    texts = {text.split("<br>")[0]: text for trace in shown_points(figure) for text in trace.hovertext}
    assert set(texts) == {"<b>trial 0</b>, enqueued", *(f"<b>trial {number}</b>" for number in range(1, 5))}
    assert texts["<b>trial 2</b>"].split("<br>")[1:] == [
        *ARCHITECTURES[2].split(),
        "mAP 0.365",
        "AP50 0.547",
        "inference time 40.5 ± 0.8 ms",
        "FLOPs 21.6 G",
        "params 25.6 M",
    ]


def test_markup_in_the_database_is_text_in_the_figure(tmp_path: Path) -> None:
    trials = [finished(0.3, 20.0, architecture="<script>alert(1)</script>", device="<b>GPU</b>")]
    study = make_study(tmp_path, trials, metrics=("<i>map</i>", "latency_ms"))
    figure = front_figure(study)
    [trace] = shown_points(figure)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in trace.hovertext[0]
    assert figure.layout.xaxis.title.text == "inference time (ms)<br>on &lt;b&gt;GPU&lt;/b&gt;"
    assert figure.layout.yaxis.title.text == "&lt;i&gt;map&lt;/i&gt;"


@pytest.mark.parametrize("colour_by", ["input size", "backbone"])
def test_each_colouring_draws_every_finished_trial_once(tmp_path: Path, colour_by: str) -> None:
    figure = front_figure(make_study(tmp_path, detectors()), colour_by)  # type: ignore[arg-type]
    assert sorted(x for trace in shown_points(figure) for x in trace.x) == [18.25, 21.5, 40.5, 52.0, 108.1]
    [menu] = figure.layout.updatemenus
    active = menu.buttons[menu.active]
    assert active.label == f"by {colour_by}"
    assert active.args[0]["visible"] == [trace.visible is not False for trace in figure.data]
    for button in menu.buttons:
        visible = [trace for trace, shown in zip(figure.data, button.args[0]["visible"], strict=True) if shown]
        assert sum(len(trace.x) for trace in visible if trace.hovertext) == 5


def test_the_legend_names_input_sizes_in_order_and_families_of_backbones(tmp_path: Path) -> None:
    study = make_study(tmp_path, detectors())
    groups = {group: None for group in (trace.legendgroup for trace in front_figure(study).data) if group}
    assert list(groups) == [
        *[f"input size: {size}" for size in ("512x512", "800x600", "1333x800")],
        *[f"backbone: {name}" for name in ("basicblock", "MobileNetV2", "ResNet18", "ResNet50", "ResNeXt101")],
    ]


def test_more_labels_than_colours_leave_the_rarest_to_other(tmp_path: Path) -> None:
    text = "{0}x{0} ResNet50 RPN 2FC"
    trials = [finished(0.3, float(size), architecture=text.format(size)) for size in range(100, 110) for _ in "ab"]
    study = make_study(tmp_path, [*trials, finished(0.3, 7.0, architecture="unreadable")])
    shown = shown_points(front_figure(study))
    assert len({trace.legendgroup for trace in shown}) == 8
    assert sum(len(trace.x) for trace in shown) == 21


def test_enqueued_trials_are_diamonds_and_dominated_trials_are_small_and_faint(tmp_path: Path) -> None:
    points = {}
    for trace in shown_points(front_figure(make_study(tmp_path, detectors()))):
        for x, symbol in zip(trace.x, trace.marker.symbol, strict=True):
            points[x] = (symbol, trace.marker.size, trace.marker.opacity)
    on_front, dominated = ("circle", 12, 1.0), ("circle", 7, 0.45)
    assert points == {18.25: ("diamond", 12, 1.0), 21.5: dominated, 40.5: on_front, 52.0: on_front, 108.1: dominated}


def test_error_bars_show_the_recorded_spread(tmp_path: Path) -> None:
    trials = [finished(0.3, 20.0, latency_spread_ms=0.5), finished(0.2, 10.0), finished(0.1, 30.0)]
    on_front, dominated = sorted(
        shown_points(front_figure(make_study(tmp_path, trials))), key=lambda trace: -len(trace.x)
    )
    assert list(on_front.error_x.array) == [0.5, 0.0]
    assert dominated.error_x.array is None


def test_three_objectives_are_drawn_in_a_panel_per_cost(tmp_path: Path) -> None:
    trials = [finished(0.4, 20.0, 5e9), finished(0.3, 10.0, 6e9), finished(0.2, 15.0, 4e9), finished(0.1, 30.0, 9e9)]
    study = make_study(
        tmp_path, trials, metrics=("map", "latency_ms", "flops"), directions=("maximize", "minimize", "minimize")
    )
    figure = front_figure(study)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert [list(line.x) for line in lines] == [[10.0, 20.0], [4.0, 5.0]]
    assert figure.layout.xaxis2.title.text == "FLOPs (G, multiply-adds)"
    assert len([trace for trace in shown_points(figure) if trace.xaxis == "x2"]) == 2


def test_one_objective_is_drawn_over_the_trials_with_the_best_so_far(tmp_path: Path) -> None:
    trials = [finished(value) for value in (0.1, 0.3, 0.2, 0.4)]
    study = make_study(tmp_path, trials, metrics=("map",), directions=("maximize",))
    line = line_of(front_figure(study), "best so far")
    assert list(line.x) == [0, 1, 2, 3]
    assert list(line.y) == [0.1, 0.3, 0.3, 0.4]
    with pytest.raises(ValueError, match="two objectives or more; the study has 1"):
        hypervolume_figure(study)


def test_the_hypervolume_is_drawn_with_its_reference_point(tmp_path: Path) -> None:
    trials = [finished(0.2, 10e9), finished(0.4, 30e9), finished(0.1, 50e9)]
    figure = hypervolume_figure(make_study(tmp_path, trials, metrics=("map", "flops")))
    [line] = figure.data
    assert list(line.x) == [0, 1, 2]
    assert list(line.y) == pytest.approx([4.0, 8.0, 8.0])
    assert figure.layout.yaxis.title.text == "hypervolume (mAP \N{MULTIPLICATION SIGN} GFLOPs)"
    title = figure.layout.title.text.replace("<br>", " ")
    assert title == "Reference point, the worst values seen: mAP 0.100, FLOPs 50.0 G"


def test_an_unknown_colouring_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="colour_by 'neck': expected one of input size, backbone"):
        front_figure(make_study(tmp_path), "neck")  # type: ignore[arg-type]


def test_a_study_without_finished_trials_makes_empty_figures(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    assert shown_points(front_figure(study)) == []
    assert list(hypervolume_figure(study).data[0].x) == []
