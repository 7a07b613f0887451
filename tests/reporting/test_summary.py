from pathlib import Path

from rich.table import Table

from smnas_optuna.reporting.study_results import results_of
from smnas_optuna.reporting.summary import front_table
from tests.reporting.synthetic_study import ARCHITECTURES, detectors, finished, make_study


def rows_of(table: Table) -> list[list[str]]:
    """Return the cells of a table, starting with the headings."""
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    return [[str(column.header) for column in table.columns], *map(list, zip(*cells, strict=True))]


def test_the_front_is_a_table_with_the_most_accurate_first(tmp_path: Path) -> None:
    table = front_table(results_of(make_study(tmp_path, detectors())))
    assert table.title == "Pareto front of coco/structural"
    head, *rows = rows_of(table)
    assert head == ["trial", "mAP", "AP50", "ms", "GFLOPs", "params (M)", "architecture"]
    assert [row[0] for row in rows] == ["3", "2", "0"]
    assert rows[1] == ["2", "0.365", "0.547", "40.5 ± 0.8", "21.6", "25.6", ARCHITECTURES[2]]


def test_the_front_table_has_the_device_if_there_are_several(tmp_path: Path) -> None:
    trials = [finished(0.3, 20.0, device="A"), finished(0.3, 30.0, device="B")]
    head, *rows = rows_of(front_table(results_of(make_study(tmp_path, trials))))
    assert head[-2:] == ["device", "architecture"]
    assert [row[-2] for row in rows] == ["A", "B"]
