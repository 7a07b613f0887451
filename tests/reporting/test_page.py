import base64
import io
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState, create_trial

from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.reporting.page import write_report
from smnas_optuna.reporting.quantity import MISSING
from smnas_optuna.search.modular import Candidate, ModularSearch
from smnas_optuna.search.structural import StructuralSearch
from smnas_optuna.search.studies import open_study
from smnas_optuna.study.storage import open_storage
from tests.reporting.synthetic_study import ARCHITECTURES, detectors, finished, make_study


class Page(HTMLParser):
    """A parsed page: its elements with attributes, the text outside of scripts and styles, and the rows of tables."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.title = ""
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self._inside.append(tag)
        self.text += " "
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._inside):
            self.text += data
        if {"td", "th"} & set(self._inside):
            self.rows[-1][-1] += data
        if "title" in self._inside:
            self.title += data


def read_report(study: optuna.Study, directory: Path) -> Page:
    return Page(write_report(study, directory).read_text(encoding="utf-8"))


def test_the_file_and_the_title_are_named_after_the_study(tmp_path: Path) -> None:
    path = write_report(make_study(tmp_path, detectors(), name="coco/modular/C3"), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "coco-modular-C3.html"
    assert Page(path.read_text(encoding="utf-8")).title == "coco/modular/C3"


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    page = read_report(make_study(tmp_path, detectors()), tmp_path)
    assert not {"link", "img", "iframe", "base"} & {tag for tag, _ in page.elements}
    addresses = [
        attributes[key] for _, attributes in page.elements for key in ("src", "href", "srcset") if key in attributes
    ]
    assert all(address and address.startswith("data:") for address in addresses)
    style = page.html[page.html.index("<style>") : page.html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_plotly_is_embedded_once_for_all_figures(tmp_path: Path) -> None:
    page = read_report(make_study(tmp_path, detectors()), tmp_path)
    assert page.html.count("* plotly.js v") == 1
    assert len([tag for tag, attributes in page.elements if attributes.get("class") == "figure"]) == 3


def test_the_headline_numbers_come_first(tmp_path: Path) -> None:
    text = " ".join(read_report(make_study(tmp_path, detectors()), tmp_path).text.split())
    head = text[: text.index("Accuracy against cost")]
    assert "best mAP 0.401 trial 3, inference time 52.0 ms" in head
    assert "lowest inference time 18.2 ms trial 0, mAP 0.211" in head
    assert "hypervolume 74% of the range of values seen so far" in head
    assert "trials 7 5 finished, 1 pruned, 1 failed" in head


def test_an_interrupted_trial_that_was_repeated_is_not_called_failed(tmp_path: Path) -> None:
    attributes = {"outcome": "interrupted", "reason": "interrupted: the process that evaluated it ended"}
    interrupted = create_trial(state=TrialState.FAIL, user_attrs=attributes)
    study = make_study(tmp_path, [*detectors(), interrupted])
    repeat = create_trial(values=[0.3, 30.0], system_attrs={"retry_history": [7]})
    study.add_trials([repeat, create_trial(state=TrialState.RUNNING)])
    page = read_report(study, tmp_path)
    text = " ".join(page.text.split())
    assert "trials 10 6 finished, 1 pruned, 1 failed, 1 interrupted and repeated, 1 running" in text
    assert page.rows[-1] == ["7", "interrupted and repeated", f"{attributes['reason']}{MISSING}"]


def test_the_table_lists_the_front(tmp_path: Path) -> None:
    head, *rows = read_report(make_study(tmp_path, detectors()), tmp_path).rows[:4]
    assert head == [
        *["trial", "input size", "backbone", "neck", "RPN", "head"],
        *["mAP", "AP50", "AP75", "S", "M", "L", "ms", "GFLOPs", "params (M)"],
    ]
    assert [row[0] for row in rows] == ["0", "2", "3"]
    assert rows[0][:6] == ["0", "512x512", "MobileNetV2", MISSING, "GA-RPN", "2FC"]
    assert rows[1][6:] == ["0.365", "0.547", "0.402", MISSING, "0.402", "0.474", "40.5 ± 0.8", "21.6", "25.6"]


def test_the_page_has_all_trials_as_csv(tmp_path: Path) -> None:
    page = read_report(make_study(tmp_path, detectors()), tmp_path)
    [link] = [attributes for tag, attributes in page.elements if tag == "a"]
    assert link["download"] == "coco-structural.csv"
    table = pd.read_csv(io.BytesIO(base64.b64decode(str(link["href"]).partition("base64,")[2])))
    assert table["number"].tolist() == list(range(7))
    assert table["architecture"].tolist()[:5] == list(ARCHITECTURES)
    assert table["map"].tolist()[:5] == [0.211, 0.204, 0.365, 0.401, 0.399]


def test_the_page_has_the_hypervolume_the_violations_and_the_versions(tmp_path: Path) -> None:
    seed, larger = (f"{size} ResNet50 FPN(P1-P5,c=256) RPN 2FC" for size in ("800x600", "1333x800"))
    recipe = load_recipe("coco", [f"structural.seeds=['{seed}']"])
    study = open_study(open_storage(f"sqlite:///{tmp_path}/coco.db"), StructuralSearch(recipe))
    measured = {seed: (0.3, 20.0), larger: (0.2, 40.0), larger.replace("2FC", "Cascade(n=3)"): (0.4, 35.0)}
    for text, values in measured.items():
        space = recipe.structural.space
        asked = optuna.create_study(directions=study.directions)
        asked.enqueue_trial(space.params(Architecture.parse(text)))
        space.suggest(asked.ask())
        trial = asked.trials[0]
        study.add_trial(
            create_trial(
                params=trial.params, distributions=trial.distributions, values=list(values),
                user_attrs={"architecture": text, "map": values[0]},
            )
        )  # fmt: skip
    page = " ".join(read_report(study, tmp_path).text.split())
    # From (0, 40): the seed alone 0.3 x 20, the third trial 0.1 x 5 more.
    assert "hypervolume 1.08 times that of the starting detector" in page
    assert "Reference point: mAP 0, inference time 40.0 ms; detectors that cost more do not count." in page
    assert "mAP: 1 of 3 pairs; inference time: 1 of 3 pairs" in page
    assert f"optuna {optuna.__version__}" in page[page.index("searched with") :]


@pytest.mark.parametrize(
    ("key", "value", "cause"),
    [
        ("imports", ["absent_module"], "imports: absent_module cannot be imported: ModuleNotFoundError"),
        ("seed", 3, "seed: unknown key; expected one of imports, name"),
        ("dataset", None, "dataset: found None, expected keys"),
    ],
)
def test_with_an_unusable_recipe_the_page_says_why_and_shows_everything_else(
    tiny_recipe: Path, tmp_path: Path, key: str, value: object, cause: str
) -> None:
    recipe = load_recipe(str(tiny_recipe))
    storage = open_storage(f"sqlite:///{tmp_path}/tiny.db")
    found = Architecture.parse(recipe.structural.seeds[0])
    measured: dict[str, Any] = {"map": 0.3, "latency_ms": 20.0, "latency_spread_ms": 1.0}
    first = open_study(storage, StructuralSearch(recipe))
    first.add_trial(finished(0.3, 20.0, architecture=str(found), **measured))
    candidate = Candidate(0, first.study_name, 1, found)
    second = open_study(storage, ModularSearch(recipe, candidate))
    second.add_trial(finished(0.4, 1e9, architecture=str(ModularSearch(recipe, candidate).baseline), **measured))
    assert "does not show" not in read_report(second, tmp_path).text
    second.set_user_attr("recipe", {**second.user_attrs["recipe"], key: value})
    second.set_user_attr("versions", {"smnas_optuna": "0.0.1"})
    page = read_report(second, tmp_path)
    text = " ".join(page.text.split())
    made_with = f"made with smnas_optuna 0.0.1 where here is {version('smnas_optuna')},"
    assert f"'tiny/modular/C0': its recipe, {made_with} cannot be used: {cause}" in text
    assert "Stage one and stage two" in text
    assert f"C0 refines trial 1 of tiny/structural: {found}" in text
    assert "parent" in page.rows[0]


def test_the_reasons_of_failed_and_pruned_trials_are_listed(tmp_path: Path) -> None:
    rows = read_report(make_study(tmp_path, detectors()), tmp_path).rows[-2:]
    assert rows == [
        ["5", "pruned", f"dominated before training by trial 3{ARCHITECTURES[4]}"],
        ["6", "failed", f"training: loss became NaN in epoch 2{ARCHITECTURES[2]}"],
    ]


@pytest.mark.parametrize("recipe", [{"data": {"classes": 80}}, '{"data": {"classes": 80}}'])
def test_the_recipe_is_printed_as_indented_json(tmp_path: Path, recipe: object) -> None:
    study = make_study(tmp_path, detectors())
    assert "Recipe" not in read_report(study, tmp_path).text
    study.set_user_attr("recipe", recipe)
    assert '{\n  "data": {\n    "classes": 80\n  }\n}' in read_report(study, tmp_path).text


def test_texts_of_the_database_are_escaped(tmp_path: Path) -> None:
    attack = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    trials = [
        finished(0.3, 20.0, architecture=attack, device=attack),
        create_trial(state=TrialState.FAIL, user_attrs={"architecture": attack, "reason": attack}),
    ]
    study = make_study(tmp_path, trials, metrics=(attack, "latency_ms"), name="<script>alert(1)<%script>")
    study.set_user_attr("recipe", attack)
    page = read_report(study, tmp_path)
    assert "alert(1)" in page.text
    assert [tag for tag, _ in page.elements].count("script") == 5
    assert "img" not in [tag for tag, _ in page.elements]
    assert "<script>alert" not in page.html


def test_the_page_of_a_study_without_finished_trials_says_so(tmp_path: Path) -> None:
    failed = create_trial(state=TrialState.FAIL, user_attrs={"reason": "CUDA out of memory"})
    page = read_report(make_study(tmp_path, [failed, create_trial(state=TrialState.RUNNING)]), tmp_path)
    assert "No trial of this study has finished yet" in page.text
    assert "Trials so far: 1 failed, 1 running." in page.text
    assert "CUDA out of memory" in page.text
    assert "plotly.js" not in page.html
    empty = read_report(make_study(tmp_path, name="empty"), tmp_path)
    assert "Trials so far: none." in empty.text


def test_any_study_of_optuna_can_be_reported(tmp_path: Path) -> None:
    study = make_study(tmp_path, metrics=None, name="plain")
    study.enqueue_trial({"x": 0.25, "y": 0.0125})
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)), n_trials=1)
    page = read_report(study, tmp_path)
    assert page.rows[0][-2:] == ["objective 0", "objective 1"]
    assert page.rows[-1][-2:] == ["0.250", "0.0125"]


def test_one_objective_has_no_hypervolume(tmp_path: Path) -> None:
    study = make_study(tmp_path, [finished(0.1), finished(0.3)], metrics=("map",), directions=("maximize",))
    page = read_report(study, tmp_path)
    assert "hypervolume" not in page.text.lower()
    assert page.rows[1][0] == "1"


def test_a_report_reads_the_trials_of_each_study_once(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(str(tiny_recipe))
    storage = open_storage(f"sqlite:///{tmp_path}/tiny.db")
    found = Architecture.parse(recipe.structural.seeds[0])
    measured: dict[str, Any] = {"map": 0.3, "latency_ms": 20.0, "latency_spread_ms": 1.0}
    first = open_study(storage, StructuralSearch(recipe))
    first.add_trial(finished(0.3, 20.0, architecture=str(found), **measured))
    candidates = [Candidate(number, first.study_name, 1, found) for number in range(2)]
    seconds = [open_study(storage, ModularSearch(recipe, candidate)) for candidate in candidates]
    for study, candidate in zip(seconds, candidates, strict=True):
        study.add_trial(finished(0.4, 1e9, architecture=str(ModularSearch(recipe, candidate).baseline), **measured))
    reads = []
    # The method with which a study's cache reads the database.
    read = storage._get_trials

    def count(study_id: int, *arguments: Any, **options: Any) -> Any:
        reads.append(study_id)
        return read(study_id, *arguments, **options)

    monkeypatch.setattr(storage, "_get_trials", count)
    page = read_report(seconds[0], tmp_path)
    assert "Stage one and stage two" in page.text
    assert sorted(reads) == [study._study_id for study in (first, *seconds)]


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write the report to .*file/coco-structural.html: "):
        write_report(make_study(tmp_path, detectors()), tmp_path / "file")
