"""A search with modern parts, from the recipe to the report, an exported config and an ONNX file."""

import copy
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from smnas_optuna.parts.architecture import Architecture
from tests.commands import run
from tests.conftest import TINY

SEEDS = [
    "64x48 timm:mobilenetv4_conv_small_050 FPN(P2-P4,c=16) ATSS",
    "64x48 CSPNeXt(d=0.167,w=0.125) CSPNeXtPAFPN(P2-P4,c=16) RTMDet",
    "64x48 timm:mobilenetv4_conv_small_050 PAFPN(P2-P4,c=16) GFL",
]
FAMILIES = [
    "timm:tf_efficientnet_lite0",
    "timm:convnext_atto",
    "timm:mobilenetv4_conv_small_050",
    "timm:hgnetv2_b0",
    "timm:swin_tiny_patch4_window7_224",
]


def recipe_of(seeds: list[str], **training: Any) -> dict[str, Any]:
    recipe = copy.deepcopy(TINY)
    recipe.pop("modular", None)
    recipe.pop("transfer", None)
    parts = [Architecture.parse(text) for text in seeds]
    stage = recipe["structural"]
    stage["space"] |= {
        "backbones": sorted({str(one.backbone) for one in parts}),
        "necks": sorted({one.neck.choice for one in parts if one.neck}),
        "fpn_inputs": ["P2-P4"],
        "fpn_last_outputs": ["P4"],
        "rpns": ["none"],
        "heads": sorted({str(one.head) for one in parts}),
    }
    stage["seeds"] = seeds
    stage["training"] |= training
    return recipe


def test_modern_parts_are_searched_reported_and_exported(tmp_path: Path) -> None:
    (tmp_path / "modern.yaml").write_text(yaml.safe_dump(recipe_of(SEEDS)), encoding="utf-8")
    ended = run("run_study", "modern.yaml", "--n-trials", 3, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    study = optuna.load_study(study_name="tiny/structural", storage=f"sqlite:///{tmp_path}/smnas.db")
    assert [trial.user_attrs["architecture"] for trial in study.trials] == SEEDS
    assert all(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials)

    exported = run("export", "--study", "tiny/structural", "--trial", 1, "--output", "found.py", folder=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert "RTMDetSepBNHead" in (tmp_path / "found.py").read_text(encoding="utf-8")
    weights = "work_dirs/tiny/structural/trial_00000/weights.pth"
    model = ("--format", "onnx", "--checkpoint", weights, "--output", "found.onnx")
    exported = run("export", "--study", "tiny/structural", "--trial", 0, *model, folder=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "found.onnx").stat().st_size > 1e6
    page = (tmp_path / "work_dirs" / "tiny" / "tiny-structural.html").read_text(encoding="utf-8")
    assert all(seed.partition(" ")[2] in page for seed in SEEDS)
    assert "timm:mobilenetv4_conv_small_050" in page
    counted = run("complexity", "--zoo", "RTMDet-s", "--json", folder=tmp_path)
    assert json.loads(counted.stdout)["detector"]["params"] == 8_886_924


@pytest.mark.long
def test_five_families_of_timm_train_two_epochs(tmp_path: Path) -> None:
    seeds = [f"64x48 {backbone} FPN(P2-P4,c=16) ATSS" for backbone in FAMILIES]
    (tmp_path / "families.yaml").write_text(yaml.safe_dump(recipe_of(seeds, epochs=2)), encoding="utf-8")
    ended = run("run_study", "families.yaml", "--n-trials", 5, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    study = optuna.load_study(study_name="tiny/structural", storage=f"sqlite:///{tmp_path}/smnas.db")
    assert sorted(trial.user_attrs["architecture"] for trial in study.trials) == sorted(seeds)
    assert all(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("backbones=[timm:convnxt_tiny]", "backbone timm:convnxt_tiny: timm "),
        ("backbones=[timm:vit_tiny_patch16_224]", "backbone timm:vit_tiny_patch16_224: has no level P2, with stride 8"),
    ],
)
def test_a_backbone_that_cannot_be_built_is_reported_before_anything_is_trained(
    setting: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "modern.yaml").write_text(yaml.safe_dump(recipe_of(SEEDS)), encoding="utf-8")
    settings = ("--set", f"structural.space.{setting}", "--set", "structural.seeds=[]")
    for dry_run in ((), ("--dry-run",)):
        ended = run("run_study", "modern.yaml", *settings, *dry_run, folder=tmp_path)
        assert ended.returncode == 2
        assert message in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
    assert "trial 0" not in ended.stdout
