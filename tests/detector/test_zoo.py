from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope

from smnas_optuna.detector.counting import build_on_meta, published_model
from smnas_optuna.detector.zoo import DETECTORS, find_backbone, find_detector
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.resnet import ResNet
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.model_config import model_config


def test_the_found_detectors_are_those_of_table_2() -> None:
    assert [str(DETECTORS[f"E{k}"].architecture) for k in range(6)] == [
        "512x512 basicblock_64_1-21-21-12 FPN(P2-P5,c=128) RPN 2FC",
        "800x600 basicblock_72_111-2111-2-111112 FPN(P2-P5,c=256) RPN 2FC",
        "800x600 basicblock_56_12-11111-211-1112 FPN(P1-P5,c=128) RPN Cascade(n=3)",
        "800x600 bottleneck_56_211-111111111-2111111-11112111 FPN(P1-P5,c=128) RPN Cascade(n=3)",
        "800x600 Xbottleneck_56_21-21-111111111111111-2111111 FPN(P1-P5,c=256) GA-RPN Cascade(n=3)",
        "1333x800 Xbottleneck_56_21-21-11111111111111-21111111 FPN(P1-P5,c=256) GA-RPN Cascade(n=3)",
    ]
    assert [DETECTORS[f"E{k}"].ap for k in range(6)] == [27.1, 34.3, 40.1, 42.7, 43.9, 46.1]
    assert [DETECTORS[f"E{k}"].milliseconds for k in range(6)] == [24.5, 32.2, 39.5, 50.7, 80.2, 108.1]


@pytest.mark.parametrize("name", [name for name, entry in DETECTORS.items() if not entry.architecture])
def test_detectors_without_an_architecture_are_built_from_mmdetections_config(name: str) -> None:
    config = DETECTORS[name].config
    assert config is not None
    build_on_meta(published_model(config))


def test_every_detector_has_an_architecture_or_a_config() -> None:
    for entry in DETECTORS.values():
        assert entry.architecture or entry.config
        assert entry.architecture is None or str(entry.architecture.input_size) == entry.input_size


@pytest.mark.parametrize("name", [name for name, entry in DETECTORS.items() if entry.architecture and entry.config])
def test_a_detector_of_mmdetection_is_the_same_as_ours(name: str) -> None:
    entry = DETECTORS[name]
    assert entry.architecture is not None
    assert entry.config is not None
    configs = [
        model_config(entry.architecture, classes=80, detector=Detector()),
        published_model(entry.config),
    ]
    for config in configs:
        config["backbone"].pop("init_cfg", None)
    with DefaultScope.overwrite_default_scope("mmdet"):
        ours, theirs = (MODELS.build(ConfigDict(config)).eval() for config in configs)
    weights = theirs.state_dict()
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in weights.items()
    }
    assert sum(one.numel() for one in ours.parameters()) == sum(one.numel() for one in theirs.parameters())
    torch.manual_seed(0)
    for value in weights.values():
        if value.is_floating_point():
            value.copy_(0.5 + torch.rand(value.shape) if value.dim() == 1 else 0.1 * torch.randn(value.shape))
    theirs.load_state_dict(weights)
    ours.load_state_dict(weights)
    image = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        found = [_outputs(model, image) for model in (ours, theirs)]
    assert len(found[0]) == len(found[1])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert found[0][0].isfinite().all()


def _outputs(model: Any, image: torch.Tensor) -> list[torch.Tensor]:
    features = model.extract_feat(image)
    outputs = list(features)
    for head in ("rpn_head", "bbox_head"):
        if hasattr(model, head):
            outputs += [level for kind in getattr(model, head)(features) for level in kind]
    if hasattr(model, "roi_head"):
        rois = torch.tensor([[0.0, 8, 8, 60, 50], [0, 0, 0, 128, 96]])
        outputs += model.roi_head._bbox_forward(features, rois).values()
    return outputs


def test_names_are_found_in_any_case_and_similar_ones_are_suggested() -> None:
    assert find_detector("retinanet") is DETECTORS["RetinaNet"]
    assert find_backbone("e3") == Architecture.parse(str(DETECTORS["E3"].architecture)).backbone
    assert find_backbone("r50") == ResNet("ResNet50")
    with pytest.raises(ValueError, match="'RetinNet': no such detector; did you mean RetinaNet"):
        find_detector("RetinNet")
    with pytest.raises(ValueError, match="its backbone has no code"):
        find_backbone("FSAF")
