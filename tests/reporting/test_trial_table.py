from pathlib import Path

import pytest

from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.reporting.dashboard import study_note
from smnas_optuna.reporting.page import write_report
from smnas_optuna.reporting.quantity import MISSING
from smnas_optuna.reporting.study_results import results_of
from smnas_optuna.reporting.summary import front_table
from smnas_optuna.reporting.trial_table import Column
from smnas_optuna.search.structural import StructuralSearch
from tests.reporting.synthetic_study import detectors, make_study
from tests.reporting.test_page import Page
from tests.reporting.test_summary import rows_of


@pytest.mark.parametrize(
    ("name", "heading", "value", "text"),
    [
        ("number", "trial", 3, "3"),
        ("rpn", "RPN", None, MISSING),
        ("architecture", "architecture", "800x600 ResNet50 RPN 2FC", "800x600 ResNet50 RPN 2FC"),
        ("map_small", "S", -1.0, MISSING),
        ("latency_ms", "ms", 18.25, "18.2 ± 0.4"),
        ("backbone_flops", "backbone GFLOPs", 2.5e9, "2.50"),
        ("energy", "energy", 4.0, "4.00"),
    ],
)
def test_a_column_has_a_heading_with_the_unit_and_cells_without_it(
    name: str, heading: str, value: object, text: str
) -> None:
    column = Column(name)
    assert (column.heading, column.text({name: value, "latency_spread_ms": 0.365})) == (heading, text)


def test_a_front_reads_the_same_in_the_terminal_the_report_and_the_dashboard(tmp_path: Path) -> None:
    study = make_study(tmp_path, detectors())
    results = results_of(study)
    note = study_note(results, StructuralSearch(load_recipe("coco")))
    markdown = [line.strip("| ").split(" | ") for line in note.splitlines() if line.startswith("| ")]
    tables = [
        rows_of(front_table(results)),
        [row for row in markdown if row[0] != "---"],
        Page(write_report(study, tmp_path).read_text(encoding="utf-8")).rows[:4],
    ]
    shared = set.intersection(*(set(head) for head, *_ in tables))
    assert shared == {"trial", "mAP", "ms"}
    cells = [{tuple(row[head.index(name)] for name in sorted(shared)) for row in rows} for head, *rows in tables]
    assert cells[0] == cells[1] == cells[2]
