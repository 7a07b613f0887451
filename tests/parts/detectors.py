"""Configs, networks and batches for the tests of parts."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmdet
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn

import smnas_optuna.detector.layers  # noqa: F401  # provides mmcv's operators and registers our layers
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.backbone import ClassicBackbone
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.model_config import model_config
from smnas_optuna.parts.necks.fpn import FPN

SHIPPED = Path(mmdet.__file__).parent / ".mim" / "configs"
NECKS = [
    None,
    *(
        FPN(first, last_input, last_output)
        for first, last_input, last_output in itertools.product(range(1, 5), range(1, 5), range(1, 7))
        if first <= last_input <= last_output
    ),
]
WIDTH, HEIGHT = 256, 192

# The detectors of SM-NAS's Table 2, backbones of Table 6 with the bases that reproduce its figures.
FOUND = {
    "E0": "512x512 basicblock_64_1-21-21-12 FPN(P2-P5,c=128) RPN 2FC",
    "E1": "800x600 basicblock_72_111-2111-2-111112 FPN(P2-P5,c=256) RPN 2FC",
    "E2": "800x600 basicblock_56_12-11111-211-1112 FPN(P1-P5,c=128) RPN Cascade(n=3)",
    "E3": "800x600 bottleneck_56_211-111111111-2111111-11112111 FPN(P1-P5,c=128) RPN Cascade(n=3)",
    "E4": "800x600 Xbottleneck_56_21-21-111111111111111-2111111 FPN(P1-P5,c=256) GA-RPN Cascade(n=3)",
    "E5": "1333x800 Xbottleneck_56_21-21-11111111111111-21111111 FPN(P1-P5,c=256) GA-RPN Cascade(n=3)",
}
SMALL = Detector(proposals=20, roi_samples=16, fc_channels=16, head_convs=1, anchor_scale=4)
NORMS: dict[str, dict[str, Any]] = {
    "BN": {},
    "BN and WS": {"weight_standardization": True},
    "GN": {"norm": "GN"},
    "GN and WS": {"norm": "GN", "weight_standardization": True},
}


def shipped_model(file: str) -> dict[str, Any]:
    model: dict[str, Any] = Config.fromfile(SHIPPED / file).model.to_dict()
    return model


def classic_model(text: str) -> dict[str, Any]:
    architecture = Architecture.parse(f"1333x800 {text}")
    assert isinstance(architecture.backbone, ClassicBackbone)
    return model_config(architecture, classes=80, detector=Detector(), weights=architecture.backbone.imagenet_weights)


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def sizes(levels: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(level.size(2), level.size(3)) for level in levels]


def small_config(text: str, weights: str | None = None, **changes: Any) -> dict[str, Any]:
    detector = SMALL.model_copy(update=changes)
    return model_config(Architecture.parse(f"{WIDTH}x{HEIGHT} {text}"), classes=3, detector=detector, weights=weights)


def build(config: dict[str, Any]) -> Any:
    """Build a detector with the weights that training would start from."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(ConfigDict(config))
        model.init_weights()
    return model


def batch(model: Any, images: int, training: bool, shrink: int = 1) -> dict[str, Any]:
    """Return images with objects of all sizes, as a data loader and the detector's preprocessor make them.

    The sides are those above, divided by ``shrink``.
    """
    samples = []
    height, width = HEIGHT // shrink, WIDTH // shrink
    for _ in range(images):
        boxes = torch.tensor([[8, 8, 24, 28], [60, 20, 100, 70], [20, 60, 120, 160], [90, 5, 250, 185]]).float()
        shape = {"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1.0, 1.0)}
        sample = DetDataSample(metainfo=shape)
        sample.gt_instances = InstanceData(bboxes=boxes / shrink, labels=torch.tensor([0, 1, 2, 1]))
        samples.append(sample)
    inputs = [torch.randint(0, 256, (3, height, width), dtype=torch.uint8) for _ in range(images)]
    data: dict[str, Any] = model.data_preprocessor({"inputs": inputs, "data_samples": samples}, training)
    return data


def backward(model: Any, shrink: int = 1) -> dict[str, float]:
    """Return the losses of one training step that has left its gradients in the model."""
    model.train()
    losses = model(**batch(model, images=2, training=True, shrink=shrink), mode="loss")
    total, logged = model.parse_losses(losses)
    total.backward()
    return {name: value.item() for name, value in logged.items()}


def check_that_it_learns_and_detects(text: str, norm: dict[str, Any], shrink: int = 1) -> None:
    model = build(small_config(text, **norm))
    for layer in model.modules():
        # A residual branch that starts as zero passes no gradient on before the first step.
        if isinstance(layer, nn.BatchNorm2d | nn.GroupNorm) and not layer.weight.any():
            nn.init.ones_(layer.weight)
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0  # one batch is all that its statistics are of
    losses = backward(model, shrink)
    assert all(math.isfinite(value) for value in losses.values()), losses
    head = Architecture.parse(f"64x64 {text}").head
    assert sum("loss_cls" in name for name in losses) == getattr(head, "stages", 1)
    # A level with no object learns no factor of its boxes.
    learning = {name: one for name, one in model.named_parameters() if "bbox_head.scales" not in name}
    without = [name for name, one in learning.items() if one.grad is None or not one.grad.any()]
    assert without == [], without
    assert all(one.grad.isfinite().all() for one in learning.values())

    model.eval()
    if "GA-RPN" in text:
        nn.init.zeros_(model.rpn_head.conv_loc.bias)  # so that some locations are likely enough
    if not head.NEEDS_RPN:
        # It starts out sure that there is no object.
        for name, one in model.bbox_head.named_parameters():
            if name.endswith("_cls.bias") or (".rtm_cls." in f".{name}" and name.endswith("bias")):
                nn.init.zeros_(one)
    with torch.inference_mode():
        (result,) = model(**batch(model, images=1, training=False, shrink=shrink), mode="predict")
    found = result.pred_instances
    assert 0 < len(found) <= SMALL.max_detections
    limit = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]) / shrink
    assert ((found.bboxes >= 0) & (found.bboxes <= limit)).all()
    assert ((found.scores > 0) & (found.scores <= 1)).all()
    assert set(found.labels.tolist()) <= {0, 1, 2}
