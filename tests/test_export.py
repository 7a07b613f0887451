import json
import re
import subprocess
import sys
from pathlib import Path

import mmdet
import onnxruntime
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope

import smnas_optuna.detector.layers  # noqa: F401  # provides mmcv's operators
from smnas_optuna.detector.config import model_config
from smnas_optuna.detector.counting import build_on_meta
from smnas_optuna.detector.zoo import DETECTORS
from smnas_optuna.settings import Detector
from tests.commands import run


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["E0", "E1", "E2", "E3", "E4", "E5"])
def test_a_published_detector_is_exported_as_it_was_searched_but_for_its_normalisation(
    name: str, tmp_path: Path
) -> None:
    result = run("export", "--zoo", name, "--output", "out/config.py", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    config = Config.fromfile(str(tmp_path / "out" / "config.py"))
    architecture = DETECTORS[name].architecture
    assert architecture is not None
    exported = build_on_meta(config.model.to_dict())
    searched = build_on_meta(model_config(architecture, classes=80, detector=Detector()))
    assert parameters(exported) == parameters(searched)
    assert not [module for module in exported.modules() if type(module).__name__ in ("GroupNorm", "ConvWS2d")]
    # With the same weights they are the same network.
    assert list(exported.state_dict()) == list(searched.state_dict())
    assert config.train_cfg.max_epochs == 24
    assert config.param_scheduler[1].milestones == [16, 22]
    assert config.optim_wrapper.optimizer.lr == 0.04
    assert config.auto_scale_lr.base_batch_size == 32


def test_an_exported_detector_detects_the_same_with_the_same_weights(tmp_path: Path) -> None:
    result = run("export", "--zoo", "E0", "--output", "config.py", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    architecture = DETECTORS["E0"].architecture
    assert architecture is not None
    init_default_scope("mmdet")
    exported = MODELS.build(Config.fromfile(str(tmp_path / "config.py")).model).eval()
    searched = MODELS.build(ConfigDict(model_config(architecture, classes=80, detector=Detector()))).eval()
    exported.load_state_dict(searched.state_dict())
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for one, other in zip(exported.extract_feat(images), searched.extract_feat(images), strict=True):
            assert torch.equal(one, other)


def test_a_found_detector_trains_with_our_command_and_with_mmdetections(searched: Path) -> None:
    arguments = ["--study", "tiny/structural", "--trial", 0, "--output", "found.py", "--schedule", "1x"]
    result = run("export", *arguments, folder=searched)
    assert result.returncode == 0, result.stderr
    assert "python -m smnas_optuna.train found.py" in result.stdout
    # An epoch is enough to see that it runs.
    short = (searched / "found.py").read_text(encoding="utf-8").replace("max_epochs=12", "max_epochs=1")
    (searched / "found.py").write_text(short, encoding="utf-8")
    ours = run("train", "found.py", "--output", "ours", folder=searched)
    assert ours.returncode == 0, ours.stderr
    precision = re.search(r"mAP (\d\.\d{3}) after 1 epochs; checkpoints are in ours", ours.stdout)
    assert precision
    script = Path(mmdet.__file__).parent / ".mim" / "tools" / "train.py"
    theirs = subprocess.run(
        [sys.executable, str(script), "found.py", "--work-dir", "theirs"],
        cwd=searched,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert theirs.returncode == 0, theirs.stderr
    [told] = re.findall(r"coco/bbox_mAP: (\d\.\d+)", theirs.stdout + theirs.stderr)
    assert float(told) == pytest.approx(float(precision[1]), abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --study NAME --trial N, or --zoo NAME"),
        (["--study", "tiny/structural"], "expected --study NAME --trial N, or --zoo NAME"),
        (["--zoo", "E9"], "--zoo 'E9': no such detector; expected E0"),
        (["--zoo", "FSAF"], "--zoo FSAF: MMDetection ships it, as configs/fsaf/"),
        (["--study", "tiny/structural", "--trial", 7], "--trial 7: not a finished trial of 'tiny/structural'"),
        (["--study", "tiny/modular/C0", "--trial", 0], "--study 'tiny/modular/C0': no such study"),
        (["--zoo", "E0", "--data", "nothing"], "nothing"),
        (["--zoo", "E0", "--weights", "imagenet"], "--weights imagenet: "),
        (["--study", "tiny/structural", "--trial", 0, "--weights", "imagenet"], "ResNet18(w=8) is no"),
        (["--zoo", "E0", "--weights", "missing.pth"], "--weights missing.pth: no such file"),
        (["--study", "tiny/structural", "--trial", 0, "--set", "name=x"], "--set: changes the recipe that"),
        (["--zoo", "E0", "--format", "onnx"], "--format onnx: expected --checkpoint FILE, the trained weights"),
        (["--zoo", "E0", "--format", "onnx", "--checkpoint", "missing.pth"], "--checkpoint missing.pth: no such file"),
        (["--zoo", "E0", "--format", "onnx", "--data", "coco"], "--data, --set and --weights: are for --format config"),
        (["--zoo", "E0", "--portrait"], "--checkpoint and --portrait: are for --format onnx"),
    ],
)  # fmt: skip
def test_what_a_user_gets_wrong_is_one_line_with_exit_code_2(
    arguments: list[object], message: str, searched: Path
) -> None:
    result = run("export", *arguments, "--output", "nowhere.py", folder=searched)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (searched / "nowhere.py").exists()


def onnx_classes(file: Path) -> list[str]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names: list[str] = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    return names


def test_trained_weights_are_exported_for_any_runtime(searched: Path) -> None:
    own = "work_dirs/tiny/structural/trial_00000/weights.pth"
    trial = ["--study", "tiny/structural", "--trial", 0]
    onnx = [*trial, "--format", "onnx", "--output", "found.onnx"]
    result = run("export", *onnx, "--checkpoint", own, folder=searched)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"found\.onnx: .* torch find \d+ boxes, of which 0 differ, .*\n", result.stdout)
    assert onnx_classes(searched / "found.onnx") == ["0", "1"]

    # As a final training has them, whose layers are others.
    config = run("export", *trial, "--output", "found.py", folder=searched)
    assert config.returncode == 0, config.stderr
    init_default_scope("mmdet")
    final = MODELS.build(Config.fromfile(str(searched / "found.py")).model)
    meta = {"epoch": 24, "dataset_meta": {"classes": ("nought", "one")}}
    torch.save({"state_dict": final.state_dict(), "meta": meta}, searched / "final.pth")
    result = run("export", *onnx, "--checkpoint", "final.pth", folder=searched)
    assert result.returncode == 0, result.stderr
    assert onnx_classes(searched / "found.onnx") == ["nought", "one"]

    other = run("export", *onnx, "--trial", 1, "--checkpoint", own, folder=searched)
    assert other.returncode == 2
    assert other.stderr.startswith(f"error: --checkpoint {own}: is of another detector: found 64x48 ")
    torch.save({"state_dict": {}}, searched / "backbone.pth")
    nothing = run("export", *onnx, "--checkpoint", "backbone.pth", folder=searched)
    assert nothing.stderr.startswith("error: --checkpoint backbone.pth: is no trained detector; expected a trial's")


def test_images_are_mirrored_as_the_recipe_has_it(searched: Path) -> None:
    for arguments, flip in (
        (["--study", "tiny/structural", "--trial", 0], 0.5),
        (["--zoo", "E0", "--data", "digits"], 0),
    ):
        result = run("export", *arguments, "--output", "flip.py", folder=searched)
        assert result.returncode == 0, result.stderr
        pipeline = Config.fromfile(str(searched / "flip.py")).train_dataloader.dataset.pipeline
        assert [step.prob for step in pipeline if step.type == "RandomFlip"] == [flip]


def test_a_config_that_is_none_is_the_users_error(tmp_path: Path) -> None:
    assert "CONFIG missing.py: no such file" in run("train", "missing.py", folder=tmp_path).stderr
    (tmp_path / "wrong.py").write_text("model = (", encoding="utf-8")
    wrong = run("train", "wrong.py", folder=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: CONFIG wrong.py: cannot be read: SyntaxError")


def test_the_studys_own_database_is_needed(tmp_path: Path) -> None:
    result = run("export", "--study", "a/structural", "--trial", 0, "--output", "c.py", folder=tmp_path)
    assert result.returncode == 2
    assert "no such database file" in result.stderr
