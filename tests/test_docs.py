"""The guide and the reference, built as ``make docs`` builds them."""

import contextlib
import gc
import re
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from sphinx.cmd.build import build_main

from smnas_optuna.training.server import preload, sharing

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "smnas_optuna"


def _build(arguments: list[str], log: Path) -> None:
    """Run Sphinx in a process of its own."""
    gc.disable()  # it makes little garbage, and much to look through
    with log.open("w", encoding="utf-8") as output, contextlib.redirect_stderr(output):
        sys.exit(build_main(arguments))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pages, built with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    line = re.search(r"sphinx-build (.+) docs build/docs$", recipe, re.MULTILINE)
    assert line
    assert "-W" in line[1].split()
    log = folder.with_suffix(".log")
    # Forked, since importing what the reference describes would take as long as reading the pages.
    preload()
    process = sharing(_build, [*line[1].split(), str(ROOT / "docs"), str(folder)], log)
    process.start()
    process.join()
    assert process.exitcode == 0, log.read_text(encoding="utf-8")
    return folder


class Page(HTMLParser):
    """What a page links to, and which places in it can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.places |= {place for place in (given.get("id"), given.get("name")) if place}
        self.links += [link for link in (given.get("href"), given.get("src")) if link]


def test_no_link_within_the_pages_is_dead(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 15
    dead = []
    for path, page in pages.items():
        for link in page.links:
            address, place = urldefrag(unquote(link))
            if re.match(r"[a-z]+:", address):
                continue
            target = (path.parent / address.partition("?")[0]).resolve() if address else path
            if not target.exists() or (target in pages and place not in pages[target].places):
                dead.append(f"{path.relative_to(site)}: {link}")
    assert not dead


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(
            r"<(?:script|img)[^>]* src=\"https?:|<link[^>]* rel=\"stylesheet\"[^>]* href=\"https?:", text
        )


def test_every_command_has_its_options_on_the_page(site: Path) -> None:
    page = (site / "api" / "commands.html").read_text(encoding="utf-8")
    commands = [path.stem for path in PACKAGE.glob("*.py") if "run_command(" in path.read_text(encoding="utf-8")]
    commands.remove("command_line")
    commands += [path.parent.name for path in PACKAGE.glob("*/__main__.py")]
    assert "run_study" in commands
    for command in commands:
        assert f'id="{command.replace("_", "-")}"' in page, f"docs/api/commands.md lacks {command}"
    for option in ("--n-trials", "--schedule", "--threshold", "--batch-size"):
        assert option in page


def test_every_sampler_and_every_public_module_is_in_the_reference(site: Path) -> None:
    reference = (ROOT / "docs" / "api" / "sampler.md").read_text(encoding="utf-8")
    for name in import_module("smnas_optuna.samplers").__all__:
        assert name in reference
    text = "".join(path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html"))
    for module in ("study", "search_space.structural", "parts.model_config", "training.process", "reporting.page"):
        assert f"smnas_optuna.{module}" in text
    for key in ("gpus_per_trial", "base_channels", "time_limit_minutes"):
        assert key in (site / "api" / "recipe.html").read_text(encoding="utf-8")
