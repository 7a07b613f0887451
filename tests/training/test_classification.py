from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor

from smnas_optuna.data.datasets import CheckedDataset, DatasetSplit
from smnas_optuna.detector.weights import check_weights
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.backbone import BACKBONES as FAMILIES
from smnas_optuna.parts.detector import Detector
from smnas_optuna.training.classification import (
    LabelledImages,
    Pretraining,
    TopAccuracy,
    classification_config,
    classifier_config,
    pretrain,
)
from smnas_optuna.training.final import final_config
from tests.labelled_digits import CLASSES, make_labelled_digits

# A searched backbone with each type of block, and classic backbones.
BACKBONES = [
    "basicblock_8_12-1-21-2",
    "bottleneck_8_12-1-21-2",
    "Xbottleneck_8_12-1-21-2",
    "MBblock_8_12-1-21-2",
    "ResNet18(w=8)",
    "MobileNetV2(w=8)",
]
SPLIT = DatasetSplit(Path("annotations.json"), Path("images"))
DATASET = CheckedDataset(SPLIT, SPLIT, ("cat", "dog"))


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory: pytest.TempPathFactory) -> Pretraining:
    folder = tmp_path_factory.mktemp("classification")
    return Pretraining(
        backbone=FAMILIES.parse(BACKBONES[0]),
        data=make_labelled_digits(folder),
        classes=CLASSES,
        epochs=1,
        batch_size=100,
        lr=0.1,
        input_size=32,
        workers=0,
        amp=False,
        seed=0,
        folder=folder,
    )


def detector_with(backbone: str, neck: str, weights: str | None = None) -> Any:
    """Build a detector from its exported config."""
    architecture = Architecture.parse(f"64x48 {backbone} {neck} RPN 2FC")
    config = final_config(architecture, DATASET, Detector(), weights=weights)
    init_default_scope("mmdet")
    detector = MODELS.build(config.model)
    detector.init_weights()
    return detector


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_detector_loads_exactly_the_pretrained_weights_and_so_does_the_classifier(
    backbone: str, pretraining: Pretraining, tmp_path: Path
) -> None:
    of_backbone = replace(pretraining, backbone=FAMILIES.parse(backbone), folder=tmp_path)
    file = str(pretrain(of_backbone, "cpu", from_checkpoint=False).file)
    pretrained = torch.load(file, weights_only=True)["state_dict"]
    # The statistics have been trained; they are not those of a new network.
    assert all(pretrained[key].any() for key in pretrained if key.endswith("running_mean"))

    detector = detector_with(backbone, "FPN(P1-P4,c=16)", file)
    assert list(detector.backbone.state_dict()) == list(pretrained)
    assert all(torch.equal(tensor, pretrained[key]) for key, tensor in detector.backbone.state_dict().items())

    classifier = MODELS.build(classifier_config(FAMILIES.parse(backbone), len(CLASSES)))
    classifier.backbone.load_state_dict(detector.backbone.state_dict(), strict=True)
    assert all(torch.equal(tensor, pretrained[key]) for key, tensor in classifier.backbone.state_dict().items())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_weights_of_stages_that_a_detector_lacks_are_ignored(
    backbone: str, pretraining: Pretraining, tmp_path: Path
) -> None:
    whole = MODELS.build(classifier_config(FAMILIES.parse(backbone), 4)).backbone.state_dict()
    for tensor in whole.values():
        tensor.copy_(torch.rand(tensor.shape) * 100)
    torch.save({"state_dict": whole}, tmp_path / "backbone.pth")
    lower = detector_with(backbone, "FPN(P2-P3,c=16)", str(tmp_path / "backbone.pth")).backbone.state_dict()
    assert set(lower) < set(whole)
    assert all(torch.equal(tensor, whole[key]) for key, tensor in lower.items())


def test_images_are_normalised_in_the_same_way_as_for_detectors(pretraining: Pretraining) -> None:
    init_default_scope("mmdet")
    item = LabelledImages(str(pretraining.data / "val"), 32, training=False)[150]
    inputs, labels = item["inputs"][None], torch.tensor([item["data_samples"]])
    classifier = MODELS.build(classifier_config(pretraining.backbone, 4))
    seen = classifier.data_preprocessor({"inputs": inputs, "data_samples": labels})["inputs"]
    # Detectors get images in OpenCV's channel order: blue, green, red.
    detector = detector_with(BACKBONES[0], "FPN(P1-P4,c=16)")
    seen_by_detector = detector.data_preprocessor({"inputs": list(inputs.flip(1)), "data_samples": None})["inputs"]
    assert torch.equal(seen, seen_by_detector)
    in_torchvisions_units = normalize(inputs / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(seen, in_torchvisions_units, atol=1e-5, rtol=1e-5)


def test_validation_crops_the_centre_of_an_image_scaled_to_8_sevenths_of_the_input_size(tmp_path: Path) -> None:
    image = Image.new("RGB", (512, 256))
    image.paste((255, 0, 0), (128, 0, 384, 256))
    (tmp_path / "red").mkdir()
    image.save(tmp_path / "red" / "0.png")
    item = LabelledImages(str(tmp_path), 224, training=False)[0]
    assert item["inputs"].shape == (3, 224, 224)
    assert torch.equal(item["inputs"], (to_tensor(image.crop((144, 16, 368, 240))) * 255).byte())


def test_the_learning_rate_is_proportional_to_the_batch_warms_up_and_falls_to_zero(pretraining: Pretraining) -> None:
    config = classification_config(replace(pretraining, epochs=100, batch_size=64), "cpu")
    warmup, cosine = config.param_scheduler
    assert config.optim_wrapper.optimizer.lr == pytest.approx(0.1 * 64 / 256)
    assert (warmup.end, cosine.begin) == (5 * 6, 5 * 6)  # 400 images are 6 steps of 64
    assert (cosine.end, cosine.T_max) == (600, 570)


def test_equal_scores_and_nan_do_not_count_as_correct() -> None:
    metric = TopAccuracy()
    scores = [[9.0, 8, 7, 6, 5, 4], [1, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5], [float("nan")] * 6, [2, 2, 1, 1, 1, 1]]
    labels = torch.tensor([0, 1, 1, 0, 0])
    metric.process({"data_samples": labels}, [torch.tensor(row) for row in scores])
    # First; one of five that share the second to sixth place; fifth; not a number; one of two that share the first.
    assert metric.evaluate(len(scores)) == {"accuracy/top1": 20.0, "accuracy/top5": 60.0}


def test_pretraining_does_not_resume_from_a_checkpoint_with_other_settings(
    pretraining: Pretraining, tmp_path: Path
) -> None:
    interrupted = replace(pretraining, epochs=2, folder=tmp_path)
    pretrain(interrupted, "cpu", from_checkpoint=False)
    assert (tmp_path / "checkpoint.pth").exists()
    with pytest.raises(UserError, match=r"--resume: .*/checkpoint\.pth belongs to another training: found .* 2 epochs"):
        pretrain(replace(interrupted, epochs=3), "cpu", from_checkpoint=True)


def test_a_batch_larger_than_the_data_set_is_a_user_error(pretraining: Pretraining) -> None:
    with pytest.raises(UserError, match=r"--batch-size 401: expected no more than the 400 training images"):
        classification_config(replace(pretraining, batch_size=401), "cpu")


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    wider = MODELS.build(classifier_config(FAMILIES.parse("basicblock_16_12-1-21-2"), 4)).backbone.state_dict()
    torch.save({"state_dict": wider}, tmp_path / "wider.pth")
    config = classifier_config(FAMILIES.parse(BACKBONES[0]), 4)["backbone"]
    with pytest.raises(UserError) as refused:
        check_weights("--weights wider.pth", str(tmp_path / "wider.pth"), config, otherwise="none")
    assert str(refused.value) == (
        "--weights wider.pth does not fit: expected stem.0.conv.weight of shape (4, 3, 3, 3), found (8, 3, 3, 3)"
    )
