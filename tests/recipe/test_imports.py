"""A recipe's ``imports``: Python modules that register further parts."""

import copy
from pathlib import Path

import optuna
import pytest
import yaml

from tests.commands import run, run_alone
from tests.conftest import TINY

LEFT_OUT = (
    "how often trained detectors contradict the partial order, nor the hypervolume relative to that of the starting "
    "detectors"
)

# Registers a neck, whose features are twice those of an FPN, for the search and for MMDetection.
MODULE = """
import smnas_optuna.detector.layers  # before mmdet: provides mmcv's operators
from mmdet.models.necks import FPN as Pyramid
from mmdet.registry import MODELS

from smnas_optuna.parts.necks.fpn import FPN, register_neck


@register_neck
class Twice(FPN):
    NAME = "TwiceFPN"


@MODELS.register_module()
class TwiceFPN(Pyramid):
    def forward(self, inputs):
        return tuple(2 * level for level in super().forward(inputs))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "twice.py").write_text(MODULE, encoding="utf-8")
    recipe = copy.deepcopy(TINY)
    recipe["imports"] = ["twice"]
    recipe["structural"]["space"]["necks"] = ["TwiceFPN"]
    recipe["structural"]["seeds"] = ["64x48 ResNet18(w=8) TwiceFPN(P2-P4,c=16) RPN 2FC"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return tmp_path


def test_a_registered_neck_is_searched_trained_and_exported_by_several_workers(folder: Path) -> None:
    ended = run("run_study", "mine.yaml", "--n-trials", 2, "--workers", 2, folder=folder)
    assert ended.returncode == 0, ended.stderr
    study = optuna.load_study(study_name="tiny/structural", storage=f"sqlite:///{folder}/smnas.db")
    assert all("TwiceFPN(" in trial.user_attrs["architecture"] for trial in study.trials)
    exported = run("export", "--study", "tiny/structural", "--trial", 0, "--output", "found.py", folder=folder)
    assert exported.returncode == 0, exported.stderr
    for path in ("work_dirs/tiny/structural/trial_00000/config.py", "found.py"):
        text = (folder / path).read_text(encoding="utf-8")
        assert "type='TwiceFPN'" in text
        assert "'twice'," in text.partition("imports=[")[2].partition("]")[0]

    reported = run("report", "--study", "tiny/structural", "--output", "with", folder=folder)
    assert reported.returncode == 0, reported.stderr
    page = (folder / "with" / "tiny-structural.html").read_text(encoding="utf-8")
    assert "<td>TwiceFPN(P2-P4,c=16)</td>" in page
    assert "does not show" not in page

    (folder / "twice.py").unlink()
    cause = "imports: twice cannot be imported: ModuleNotFoundError: No module named"
    refused = run_alone("export", "--study", "tiny/structural", "--trial", 0, "--output", "again.py", folder=folder)
    assert refused.returncode == 2
    assert cause in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    reported = run_alone("report", "--study", "tiny/structural", "--output", "without", folder=folder)
    assert reported.returncode == 0, reported.stderr
    page = (folder / "without" / "tiny-structural.html").read_text(encoding="utf-8")
    assert f"does not show {LEFT_OUT}: study &#39;tiny/structural&#39;: its recipe cannot be used: {cause}" in page


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("imports=[nothing]", "imports: nothing cannot be imported: ModuleNotFoundError"),
        ("imports=[]", "structural.space.necks.0: found 'TwiceFPN', expected one of none, CSPNeXtPAFPN, "),
    ],
)
def test_an_absent_module_is_reported_in_one_line(folder: Path, setting: str, message: str) -> None:
    ended = run_alone("run_study", "mine.yaml", "--dry-run", "--set", setting, folder=folder)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_part_that_raises_an_exception_fails_its_trial_and_not_the_search(folder: Path) -> None:
    broken = (
        MODULE
        + """

@register_neck
class Broken(FPN):
    NAME = "Broken"

    def config(self, channels, more_levels, detector):
        raise KeyError("no such layer")
"""
    )
    (folder / "broken.py").write_text(broken.replace("Twice", "Thrice"), encoding="utf-8")
    seeds = [f"64x48 ResNet18(w=8) {neck}(P2-P4,c=16) RPN 2FC" for neck in ("Broken", "ThriceFPN")]
    settings = (
        "--set",
        "imports=[broken]",
        "--set",
        "structural.space.necks=[ThriceFPN, Broken]",
        "--set",
        f"structural.seeds={seeds}",
    )
    ended = run("run_study", "mine.yaml", "--n-trials", 2, *settings, folder=folder)
    assert ended.returncode == 0, ended.stderr
    study = optuna.load_study(study_name="tiny/structural", storage=f"sqlite:///{folder}/smnas.db")
    first, second = study.trials
    assert (first.state, second.state) == (optuna.trial.TrialState.FAIL, optuna.trial.TrialState.COMPLETE)
    assert first.user_attrs["reason"] == "KeyError: 'no such layer'"
