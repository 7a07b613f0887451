import copy
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import mmdet
import onnxruntime
import optuna
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope

import smnas_optuna.detector.layers  # noqa: F401  # provides mmcv's operators
from smnas_optuna.data.datasets import CheckedDataset, DatasetSplit
from smnas_optuna.detector.counting import build_on_meta, published_model
from smnas_optuna.detector.zoo import DETECTORS
from smnas_optuna.errors import UserError
from smnas_optuna.export import export
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.detector import Detector
from smnas_optuna.recipe.recipe import Recipe
from smnas_optuna.search.listed import Listed
from smnas_optuna.search.modular import Candidate, ModularSearch
from smnas_optuna.search.structural import StructuralSearch
from smnas_optuna.search.studies import open_study
from smnas_optuna.search.transfer import TransferSearch
from smnas_optuna.study.storage import open_storage
from smnas_optuna.training.final import final_config
from tests.commands import run
from tests.conftest import TINY


class Pyramid(NamedTuple):
    """A detector of the paper's Table 2: its backbone, the input channels of its FPN, and the FPN's channels."""

    code: str
    inputs: list[int]
    channels: int


TABLE_2 = {
    "E0": Pyramid("basicblock_64_1-21-21-12", [128, 256, 512], 128),
    "E1": Pyramid("basicblock_72_111-2111-2-111112", [144, 288, 576], 256),
    "E2": Pyramid("basicblock_56_12-11111-211-1112", [112, 112, 224, 448], 128),
    "E3": Pyramid("bottleneck_56_211-111111111-2111111-11112111", [448, 448, 896, 1792], 128),
    "E4": Pyramid("Xbottleneck_56_21-21-111111111111111-2111111", [448, 896, 896, 1792], 256),
    "E5": Pyramid("Xbottleneck_56_21-21-11111111111111-21111111", [448, 896, 896, 1792], 256),
}


def from_mmdetections_configs(name: str) -> dict[str, Any]:
    """Return one of E0 to E5 as a config of MMDetection, with the changes of the paper."""
    cascade, guided = name in ("E2", "E3", "E4", "E5"), name in ("E4", "E5")
    shipped = (
        "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py" if cascade else "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
    )
    model = published_model(PurePosixPath(shipped))
    if guided:
        anchoring = published_model(PurePosixPath("guided_anchoring/ga-faster-rcnn_r50_fpn_1x_coco.py"))
        model["rpn_head"] = anchoring["rpn_head"]
        for part in ("train_cfg", "test_cfg"):
            model[part]["rpn"] = anchoring[part]["rpn"]
    pyramid = TABLE_2[name]
    stages = [0, 1, 2, 3][-len(pyramid.inputs) :]
    model["backbone"] = {"type": "SearchedBackbone", "code": pyramid.code, "out_indices": stages}
    model["neck"] |= {
        "in_channels": pyramid.inputs,
        "out_channels": pyramid.channels,
        "num_outs": len(pyramid.inputs) + 1,
    }
    strides = [4 * 2**stage for stage in [*stages, 4]]
    model["rpn_head"] |= {"in_channels": pyramid.channels, "feat_channels": pyramid.channels}
    for generator in ("anchor_generator", "approx_anchor_generator", "square_anchor_generator"):
        if generator in model["rpn_head"]:
            model["rpn_head"][generator]["strides"] = strides
    model["roi_head"]["bbox_roi_extractor"] |= {"out_channels": pyramid.channels, "featmap_strides": strides[:-1]}
    heads = model["roi_head"]["bbox_head"]
    for head in heads if cascade else [heads]:
        head["in_channels"] = pyramid.channels
    return model


def build(config: Any) -> Any:
    init_default_scope("mmdet")
    return MODELS.build(ConfigDict(config)).eval()


@pytest.mark.parametrize("name", TABLE_2)
def test_a_published_detector_computes_the_same_as_mmdetections_with_the_same_weights(
    name: str, tmp_path: Path
) -> None:
    export(output=tmp_path / "out" / "config.py", zoo=name)
    config = Config.fromfile(str(tmp_path / "out" / "config.py"))
    torch.manual_seed(0)
    exported, expected = build(config.model), build(from_mmdetections_configs(name))
    expected.load_state_dict(exported.state_dict())
    sample = DetDataSample(metainfo={"img_shape": (64, 96), "ori_shape": (64, 96), "scale_factor": (1.0, 1.0)})
    data = {"inputs": [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)], "data_samples": [sample]}
    with torch.no_grad():
        (found,), (wanted,) = (
            network(**network.data_preprocessor(data), mode="tensor") for network in (exported, expected)
        )
    # For each proposal: scores of the classes, averaged over a cascade's stages, and the box of the last stage.
    for one, other in zip(found, wanted, strict=True):
        output, right = torch.vstack(tuple(one)), torch.vstack(tuple(other))
        assert len(output) > 10
        assert output.std() > 0
        assert torch.equal(output, right)

    assert not [module for module in exported.modules() if type(module).__name__ in ("GroupNorm", "ConvWS2d")]
    assert config.train_cfg.max_epochs == 24
    assert config.param_scheduler[1].milestones == [16, 22]
    assert config.optim_wrapper.optimizer.lr == 0.04
    assert config.auto_scale_lr.base_batch_size == 32


@pytest.mark.parametrize("name", TABLE_2)
def test_the_number_of_classes_changes_only_the_last_layers(name: str) -> None:
    architecture = DETECTORS[name].architecture
    assert architecture is not None
    split = DatasetSplit(Path("annotations.json"), Path("images"))
    of_20, of_80 = (
        build_on_meta(
            final_config(
                architecture, CheckedDataset(split, split, tuple(map(str, range(classes)))), Detector()
            ).model.to_dict()
        ).state_dict()
        for classes in (20, 80)
    )
    assert list(of_20) == list(of_80)
    changed = {
        key: (tuple(of_20[key].shape), tuple(of_80[key].shape)) for key in of_80 if of_20[key].shape != of_80[key].shape
    }
    if name in ("E0", "E1"):  # Faster R-CNN: a box for each class
        assert changed == {
            "roi_head.bbox_head.fc_cls.weight": ((21, 1024), (81, 1024)),
            "roi_head.bbox_head.fc_cls.bias": ((21,), (81,)),
            "roi_head.bbox_head.fc_reg.weight": ((80, 1024), (320, 1024)),
            "roi_head.bbox_head.fc_reg.bias": ((80,), (320,)),
        }
    else:  # Cascade R-CNN: one for all
        assert changed == {
            f"roi_head.bbox_head.{stage}.fc_cls.{kind}": ((21, *inputs), (81, *inputs))
            for stage in range(3)
            for kind, inputs in (("weight", (1024,)), ("bias", ()))
        }


def scalars(folder: Path) -> list[dict[str, float]]:
    """Return MMEngine's log of the training steps in a work folder."""
    [file] = folder.glob("*/vis_data/scalars.json")
    logged = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [record for record in logged if "loss" in record]


def test_an_exported_detector_trains_the_same_with_our_command_and_mmdetections(searched: Path) -> None:
    arguments = ["--study", "tiny/structural", "--trial", 0, "--output", "found.py", "--schedule", "1x"]
    result = run("export", *arguments, folder=searched)
    assert result.returncode == 0, result.stderr
    assert "python -m smnas_optuna.train found.py" in result.stdout
    # The whole schedule in a few epochs of 2 steps each.
    config = Config.fromfile(str(searched / "found.py"))
    config.train_cfg.max_epochs = 4
    config.param_scheduler[0].end = 3
    config.param_scheduler[1].milestones = [3]
    config.default_hooks.logger.interval = 1
    config.dump(str(searched / "found.py"))
    ours = run("train", "found.py", "--output", "ours", folder=searched)
    assert ours.returncode == 0, ours.stderr
    precision = re.search(r"mAP (\d\.\d{3}) after 4 epochs; checkpoints are in ours", ours.stdout)
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
    scores = re.findall(r"coco/bbox_mAP: (\d\.\d+)", theirs.stdout + theirs.stderr)
    assert float(scores[-1]) == pytest.approx(float(precision[1]), abs=1e-3)

    steps, their_steps = scalars(searched / "ours"), scalars(searched / "theirs")
    # The learning rate of 0.04 is for 32 images per step; here a step has 4.
    highest = 0.04 * 4 / 32
    rates = [highest * share for share in (0.001, 0.5005, 1, 1, 1, 1, 0.1, 0.1)]
    assert [step["lr"] for step in steps] == pytest.approx(rates)
    assert [step["lr"] for step in their_steps] == pytest.approx(rates)
    losses = [step["loss"] for step in steps]
    assert losses == pytest.approx([step["loss"] for step in their_steps], rel=1e-4)
    learnt = [step["loss_cls"] for step in steps]  # which begins at the logarithm of 3 classes, one of them background
    assert learnt[-1] < 0.95 * learnt[0]


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
def test_a_user_error_is_one_line_with_exit_code_2(arguments: list[object], message: str, searched: Path) -> None:
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


def test_trained_weights_are_exported_as_onnx(searched: Path) -> None:
    own = "work_dirs/tiny/structural/trial_00000/weights.pth"
    trial = ["--study", "tiny/structural", "--trial", 0]
    onnx = [*trial, "--format", "onnx", "--output", "found.onnx"]
    result = run("export", *onnx, "--checkpoint", own, folder=searched)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"found\.onnx: .* torch find \d+ boxes, of which 0 differ; .*\n", result.stdout)
    assert onnx_classes(searched / "found.onnx") == ["0", "1"]

    other = run("export", *onnx, "--trial", 1, "--checkpoint", own, folder=searched)
    assert other.returncode == 2
    assert other.stderr == f"error: --checkpoint {own}: belongs to another trial: found 0, expected 1\n"
    content = torch.load(searched / own)
    architecture = content["meta"]["architecture"]
    of_trial_1 = partial(export, study="tiny/structural", trial=1, storage=f"sqlite:///{searched}/smnas.db")
    for changed, message in (
        ({"study": "b2", "study_name": "mine/structural"}, "belongs to another study: found 'mine/structural' "),
        ({"trial": 1}, f"belongs to another detector: found {architecture}, expected 64x48 "),
    ):
        torch.save({**content, "meta": {**content["meta"], **changed}}, searched / "other.pth")
        with pytest.raises(UserError, match=re.escape(f"other.pth: {message}")):
            of_trial_1(output=searched / "found.onnx", kind="onnx", checkpoint=searched / "other.pth")
    torch.save({"state_dict": {}}, searched / "backbone.pth")
    nothing = run("export", *onnx, "--checkpoint", "backbone.pth", folder=searched)
    assert nothing.stderr.startswith("error: --checkpoint backbone.pth: not a trained detector; expected a trial's")


def test_weights_of_a_final_training_which_has_other_normalisation_layers_are_exported_as_onnx(searched: Path) -> None:
    trial = ["--study", "tiny/structural", "--trial", 0]
    onnx = [*trial, "--format", "onnx", "--output", "found.onnx"]
    config = run("export", *trial, "--output", "found.py", folder=searched)
    assert config.returncode == 0, config.stderr
    init_default_scope("mmdet")
    final = MODELS.build(Config.fromfile(str(searched / "found.py")).model)
    meta = {"epoch": 24, "dataset_meta": {"classes": ("nought", "one")}}
    torch.save({"state_dict": final.state_dict(), "meta": meta}, searched / "final.pth")
    result = run("export", *onnx, "--checkpoint", "final.pth", folder=searched)
    assert result.returncode == 0, result.stderr
    assert onnx_classes(searched / "found.onnx") == ["nought", "one"]


def mirrored(file: Path) -> list[float]:
    pipeline = Config.fromfile(str(file)).train_dataloader.dataset.pipeline
    return [step.prob for step in pipeline if step.type == "RandomFlip"]


def test_the_flip_probability_is_that_of_the_trial_or_of_the_recipe_of_other_data(tmp_path: Path) -> None:
    content = copy.deepcopy(TINY)
    for stage, flip in (("structural", 0.1), ("modular", 0.2), ("transfer", 0.3)):
        content[stage]["training"] = TINY[stage]["training"] | {"flip": flip}
    recipe = Recipe.model_validate(content)
    seed = Architecture.parse(recipe.structural.seeds[0])
    url = f"sqlite:///{tmp_path}/smnas.db"
    storage = open_storage(url)
    for search, flip in (
        (StructuralSearch(recipe), 0.1),
        (ModularSearch(recipe, Candidate(0, "tiny/structural", 0, seed)), 0.2),
        (TransferSearch(recipe, (Listed(seed, Listed.BASELINE),)), 0.3),
    ):
        study = open_study(storage, search)
        architecture = {"architecture": str(search.starts[0])}
        study.add_trial(optuna.create_trial(values=[0.1, 1.0], user_attrs=architecture))
        of_trial = partial(export, study=study.study_name, trial=len(study.trials) - 1, storage=url)
        of_trial(output=tmp_path / "own.py")
        assert mirrored(tmp_path / "own.py") == [flip]
        of_trial(output=tmp_path / "other.py", data="digits")
        assert mirrored(tmp_path / "other.py") == [0]  # a digit's mirror image is none
    export(output=tmp_path / "published.py", zoo="E0", data="digits")
    assert mirrored(tmp_path / "published.py") == [0]


def test_an_output_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "weights.pth").touch()
    as_onnx = partial(export, kind="onnx", checkpoint=tmp_path / "weights.pth")
    for command in (export, as_onnx):
        with pytest.raises(UserError, match=r"^--output .*/models: is a folder; expected a file's name$"):
            command(output=tmp_path / "models", zoo="E0")


def test_the_help_lists_the_detectors_that_can_be_exported(tmp_path: Path) -> None:
    text = re.sub(r"-\s+", "-", run("export", "--help", folder=tmp_path).stdout)  # lines end at hyphens
    named = {name for name in DETECTORS if re.search(rf"\b(?<!-){name}\b(?!-)", text)}
    assert named == {name for name, published in DETECTORS.items() if published.architecture}
    assert "Mask-RCNN" in DETECTORS.keys() - named


def test_a_study_is_looked_for_in_the_given_database(tmp_path: Path) -> None:
    result = run("export", "--study", "a/structural", "--trial", 0, "--output", "c.py", folder=tmp_path)
    assert result.returncode == 2
    assert "no such database file" in result.stderr
