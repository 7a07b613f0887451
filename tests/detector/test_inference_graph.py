"""The graph detects the same as MMDetection, with every kind of head."""

from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope

import smnas_optuna.detector.layers  # noqa: F401  # provides mmcv's operators
from smnas_optuna.detector.inference_graph import InferenceGraph
from smnas_optuna.detector.onnx_model import distances
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.model_config import model_config

CLASSES = 3
KINDS = {
    "one-stage": "160x120 ResNet18(w=8) FPN(P2-P5,c=16) RetinaNet",
    "two-stage": "160x120 ResNet18(w=8) FPN(P1-P4,c=16) RPN 2FC",
    "without a neck": "160x120 ResNet18(w=8) RPN 2FC",
    "cascade": "160x120 MobileNetV2(w=16) FPN(P1-P5,c=16) RPN Cascade(n=3)",
    "guided anchoring": "160x120 Xbottleneck_32_2-1-1-1 FPN(P1-P4,c=16) GA-RPN Cascade(n=2)",
    "guided anchoring without a neck": "160x120 basicblock_8_11-21-1-12 GA-RPN 2FC",
    "ATSS": "160x120 timm:mobilenetv3_small_050 FPN(P2-P5,c=16) ATSS",
    "FCOS": "160x120 ResNet18(w=8) PAFPN(P2-P4,c=16) FCOS",
    "GFL": "160x120 ResNet18(w=8) FPN(P1-P3,c=16) GFL",
    "RTMDet": "160x120 CSPNeXt(d=0.167,w=0.25) CSPNeXtPAFPN(P1-P3,c=16) RTMDet",
}
# Standard deviations of the heads' weights with which a detector finds different boxes, where 0.03 is too weak.
STRENGTHS = {"FCOS": 0.2, "GFL": 0.1, "RTMDet": 0.08}


def network(text: str, detector: Detector | None = None) -> Any:
    """Return a detector with random weights that finds something."""
    torch.manual_seed(3)
    init_default_scope("mmdet")
    config = model_config(Architecture.parse(text), classes=CLASSES, detector=detector or Detector())
    model = MODELS.build(ConfigDict(config))
    model.init_weights()
    for module in model.modules():
        if hasattr(module, "loss_cls"):
            for name, parameter in module.named_parameters():
                # New heads are sure of background and of unchanged boxes.
                if any(part in name for part in ("cls", "reg", "shape", "conv_loc", "conv_offset")):
                    torch.nn.init.normal_(parameter, std=STRENGTHS.get(config["type"], 0.03))
                if "gfl_reg" in name:
                    # Distributions of distances that are not all alike.
                    torch.nn.init.normal_(parameter)
    if config["type"] in STRENGTHS:
        # Statistics of a batch, without which the features of deep networks are all alike.
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            model.train().bbox_head(model.extract_feat(torch.randn(4, 3, 128, 160)))
    return model.eval()


def mmdetections(model: Any, image: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    sample = DetDataSample(metainfo={"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0)})
    bgr = image[0, [2, 1, 0], : size[0], : size[1]]
    with torch.no_grad():
        (found,) = model.test_step({"inputs": [bgr], "data_samples": [sample]})
    return found.pred_instances.bboxes, found.pred_instances.scores, found.pred_instances.labels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "detector", [Detector(), Detector(norm="GN", weight_standardization=True)], ids=["BN", "GN+WS"]
)
def test_a_graph_detects_the_same_as_mmdetection(kind: str, detector: Detector) -> None:
    model = network(KINDS[kind], detector)
    graph = InferenceGraph(model)
    image = torch.randint(0, 256, (1, 3, 128, 160)).float()
    for size in ((128, 160), (119, 150)):
        expected = mmdetections(model, image, size)
        assert len(expected[0]) > 10
        with torch.no_grad():
            boxes, scores, labels = graph(image, torch.tensor(size))
        found = labels >= 0
        assert int(found.sum()) == len(expected[0])
        assert distances(expected, (boxes, scores, labels)).max() < 1e-3
        assert torch.equal(scores, scores.sort(descending=True).values)
        assert not boxes[~found].any()
        assert not scores[~found].any()


def test_values_outside_of_the_image_are_ignored() -> None:
    graph = InferenceGraph(network(KINDS["two-stage"]))
    image = torch.randint(0, 256, (1, 3, 128, 160)).float()
    other = image.clone()
    other[:, :, 100:] = 255
    other[:, :, :, 130:] = 0
    with torch.no_grad():
        for one, same in zip(
            graph(image, torch.tensor([100, 130])), graph(other, torch.tensor([100, 130])), strict=True
        ):
            assert torch.equal(one, same)
