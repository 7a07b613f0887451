"""A search with modern parts, from the recipe to the report, an exported config and an ONNX file."""

import copy
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from mmengine.config import Config

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
        "backbones": sorted({one.backbone.choice for one in parts}),
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


def test_a_search_starts_from_the_users_weights_and_trains_each_family_in_its_own_way(
    lite_weights: Path, tmp_path: Path
) -> None:
    seeds = [
        "64x48 timm:tf_efficientnet_lite0 FPN(P2-P4,c=16) ATSS",
        "64x48 CSPNeXt(d=0.167,w=0.125) CSPNeXtPAFPN(P2-P4,c=16) RTMDet",
        "64x48 ResNet18(w=8) FPN(P2-P4,c=16) RetinaNet",
    ]
    recipe = recipe_of(seeds, weights="auto", mosaic=True, mixup=True, photometric=True, scale_jitter=[0.5, 1.5])
    recipe["structural"]["detector"] |= {"norm": "BN", "weight_standardization": False}
    for key in ("lr", "clip_gradients", "warmup_iterations"):
        del recipe["structural"]["training"][key]
    (tmp_path / "auto.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    options = ("auto.yaml", "--n-trials", 3, "--weights-dir", lite_weights)
    described = run("run_study", *options, "--dry-run", folder=tmp_path)
    assert "(from file tf_efficientnet_lite0.pth)" in described.stdout
    ended = run("run_study", *options, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    study = optuna.load_study(study_name="tiny/structural", storage=f"sqlite:///{tmp_path}/smnas.db")
    assert [trial.user_attrs["weights"] for trial in study.trials] == [
        *("file tf_efficientnet_lite0.pth", "scratch", "scratch")
    ]
    page = (tmp_path / "work_dirs" / "tiny" / "tiny-structural.html").read_text(encoding="utf-8")
    assert "scratch (2), file tf_efficientnet_lite0.pth (1)" in page
    front = {trial.user_attrs["weights"] for trial in study.best_trials}
    for name in front if front != {"scratch"} else ():
        assert f"<td>{name}</td>" in page
    assert ("<th>trained from</th>" in page) == ("trained from" in ended.stdout) == (front != {"scratch"})
    configs = [
        Config.fromfile(tmp_path / f"work_dirs/tiny/structural/trial_{number:05}/config.py") for number in range(3)
    ]
    optimizers = [config.optim_wrapper.optimizer for config in configs]
    # Learning rates at 4 images: 0.0001 for 16 and 0.004 for 256 with AdamW, 0.01 for 16 with SGD.
    assert [(each.type, round(each.lr, 6)) for each in optimizers] == [
        ("AdamW", 0.00005),
        ("AdamW", 0.0005),
        ("SGD", 0.0025),
    ]
    hooks = [[hook.type for hook in config.custom_hooks] for config in configs]
    assert hooks == [["PipelineSwitchHook"], ["PipelineSwitchHook", "AverageWeights"], ["PipelineSwitchHook"]]

    exported = run("export", "--study", "tiny/structural", "--trial", 1, "--output", "found.py", folder=tmp_path)
    assert exported.returncode == 0, exported.stderr
    final = Config.fromfile(tmp_path / "found.py")
    assert (final.optim_wrapper.optimizer.type, final.auto_scale_lr.enable) == ("AdamW", False)
    assert final.optim_wrapper.optimizer.lr == pytest.approx(0.0005)
    assert [hook.type for hook in final.custom_hooks] == ["EMAHook"]


def test_stage_two_searches_the_widths_of_a_detector_whose_backbone_has_no_code(tmp_path: Path) -> None:
    recipe = recipe_of(SEEDS[:1])
    stage = recipe["structural"]
    recipe["modular"] = {
        "candidates": 1,
        "trials": 3,
        "objectives": ["map", "flops"],
        "space": {"fpn_channels": [8, 16], "head_widths": [0.5, 1]},
        "detector": stage["detector"],
        "training": stage["training"],
    }
    (tmp_path / "widths.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    ended = run("run_study", "widths.yaml", "--stage", "all", "--n-trials", 2, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    study = optuna.load_study(study_name="tiny/modular/C0", storage=f"sqlite:///{tmp_path}/smnas.db")
    found = [trial.user_attrs["architecture"] for trial in study.trials]
    assert found[0] == SEEDS[0]
    assert len(set(found)) == len(found) == 2
    assert all(text.startswith("64x48 timm:mobilenetv4_conv_small_050 FPN(P2-P4,c=") for text in found)
    assert (tmp_path / "work_dirs" / "tiny" / "tiny-modular-C0.html").is_file()
    objectives = recipe | {"modular": recipe["modular"] | {"objectives": ["map", "backbone_flops"]}}
    (tmp_path / "unknown.yaml").write_text(yaml.safe_dump(objectives), encoding="utf-8")
    refused = run("run_study", "unknown.yaml", "--dry-run", folder=tmp_path)
    assert refused.returncode == 2
    assert "modular.objectives: backbone_flops is for backbones that stage two searches" in refused.stderr


def test_weights_that_fit_nothing_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    seeds = ["64x48 timm:tf_efficientnet_lite0 FPN(P2-P4,c=16) ATSS"]
    (tmp_path / "auto.yaml").write_text(yaml.safe_dump(recipe_of(seeds, weights="auto")), encoding="utf-8")
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "tf_efficientnet_lite0.pth")
    for folder, message in (
        (tmp_path, "does not fit: expected conv_stem.weight of shape (32, 3, 3, 3), found None"),
        (tmp_path / "absent", "no such folder"),
    ):
        ended = run("run_study", "auto.yaml", "--weights-dir", folder, folder=tmp_path)
        assert ended.returncode == 2
        assert f"--weights-dir {folder}: " in ended.stderr
        assert message in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


@pytest.mark.long
def test_each_head_learns_the_digits(tmp_path: Path) -> None:
    text = """
        name: digits
        dataset: {kind: digits, classes: 4, train_images: 128, val_images: 60, width: 128, height: 96}
        device: {kind: cpu, cpu_threads: 1, timing: {images: 10, warmup: 2, rounds: 2}}
        structural:
          trials: 4
          sampler: random
          space:
            backbones: [ResNet18]
            base_channels: 16
            necks: [FPN]
            fpn_inputs: [P2-P4]
            fpn_last_outputs: [P4]
            fpn_channels: 32
            rpns: [none]
            heads: [ATSS, FCOS, GFL, RTMDet]
            input_sizes: [128x96]
          seeds:
            - 128x96 ResNet18(w=16) FPN(P2-P4,c=32) ATSS
            - 128x96 ResNet18(w=16) FPN(P2-P4,c=32) FCOS
            - 128x96 ResNet18(w=16) FPN(P2-P4,c=32) GFL
            - 128x96 ResNet18(w=16) FPN(P2-P4,c=32) RTMDet
          detector: {norm: GN, weight_standardization: true, anchor_scale: 4, head_convs: 2}
          training:
            {epochs: 20, batch_size: 2, optimizer: AdamW, lr: 0.003, warmup_iterations: 30, clip_gradients: 35, flip: 0,
             weights: none, loader_workers: 0}
    """
    (tmp_path / "heads.yaml").write_text(text, encoding="utf-8")
    ended = run("run_study", "heads.yaml", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    study = optuna.load_study(study_name="digits/structural", storage=f"sqlite:///{tmp_path}/smnas.db")
    assert len(study.trials) == 4
    for trial in study.trials:
        assert trial.user_attrs["map_50"] > 0.5, trial.user_attrs["architecture"]
