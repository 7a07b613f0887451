from pathlib import Path

import optuna
import pytest
from playwright.sync_api import Page

from smnas_optuna.reporting.page import write_report
from tests.browser import open_page
from tests.reporting.synthetic_study import ARCHITECTURES, detectors, finished, make_study

LAYOUT_SHIFT = """
window.shift = 0;
new PerformanceObserver(list => {
  for (const entry of list.getEntries()) window.shift += entry.value;
}).observe({type: "layout-shift", buffered: true});
"""


def open_report(page: Page, path: Path) -> None:
    page.add_init_script(LAYOUT_SHIFT)
    page.goto(path.as_uri())
    for figure in page.query_selector_all(".figure"):
        identity = figure.get_attribute("id")
        page.wait_for_selector(f"#{identity} .cartesianlayer .subplot", state="attached")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (400, False)])
def test_the_report_draws_every_figure_without_a_network_and_nothing_moves(
    width: int, dark: bool, tmp_path: Path
) -> None:
    path = write_report(make_study(tmp_path, detectors()), tmp_path, known="all")
    with open_page(width=width, dark=dark, offline=True) as page:
        open_report(page, path)
        assert len(page.query_selector_all(".figure.js-plotly-plot")) == 3
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate("window.shift") < 0.1
        background = page.evaluate("getComputedStyle(document.querySelector('#front .bg')).fill")
        assert (background == "rgb(255, 255, 255)") is not dark


def test_hovering_over_a_point_shows_the_whole_architecture(tmp_path: Path) -> None:
    path = write_report(make_study(tmp_path, detectors()), tmp_path)
    with open_page() as page:
        open_report(page, path)
        texts = set()
        for point in page.query_selector_all("#front .scatterlayer .points path"):
            page.mouse.move(0, 0)
            page.wait_for_selector("#front .hoverlayer .hovertext", state="detached")
            box = point.bounding_box()
            assert box is not None
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            label = page.wait_for_selector("#front .hoverlayer .hovertext")
            assert label is not None
            texts.add(" ".join(span.text_content() or "" for span in label.query_selector_all("tspan.line")))
        for architecture in ARCHITECTURES:
            assert any(f" {architecture} " in text for text in texts), texts


def test_colours_and_axes_can_be_chosen_with_the_keyboard(tmp_path: Path) -> None:
    path = write_report(make_study(tmp_path, detectors()), tmp_path)
    with open_page() as page:
        open_report(page, path)
        pressed = {}
        for _ in range(20):
            page.keyboard.press("Tab")
            name = page.evaluate("document.activeElement.textContent")
            if page.evaluate("document.activeElement.tagName") == "BUTTON":
                page.keyboard.press("Enter")
                pressed[name] = page.evaluate("document.activeElement.getAttribute('aria-pressed')")
        assert pressed["backbone"] == pressed["log"] == "true"
        assert page.evaluate("document.getElementById('front').layout.xaxis.type") == "log"


def test_the_report_of_2000_trials_is_small_enough_to_send(tmp_path: Path) -> None:
    trials = []
    for number in range(2000):
        precision, milliseconds = 0.4 - 1 / (number + 10), 20.0 + number / 7
        trials.append(
            finished(
                precision,
                milliseconds,
                architecture=ARCHITECTURES[number % 5],
                map=precision,
                flops=number * 1e9,
                latency_ms=milliseconds,
                latency_spread_ms=0.4,
                device="A",
            )
        )
    study = optuna.create_study(directions=["maximize", "minimize"], study_name="large")
    study.set_metric_names(["map", "latency_ms"])
    study.add_trials(trials)
    path = write_report(study, tmp_path)
    assert path.stat().st_size < 8_000_000
    assert path.read_text(encoding="utf-8").count("* plotly.js v") == 1
    with open_page() as page:
        open_report(page, path)
        assert len(page.query_selector_all("#front .points path")) == 2000
