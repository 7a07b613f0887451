"""The one-stage head of FCOS (Tian et al. 2019)."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

from smnas_optuna.parts.anchors import focal_loss
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.heads.head import register_head
from smnas_optuna.parts.heads.one_stage import ONE_STAGE, OneStageHead, dense_test_config
from smnas_optuna.parts.levels import Features
from smnas_optuna.parts.optimization import Optimization
from smnas_optuna.parts.part import Config
from smnas_optuna.parts.rpns.rpn import RPN

_INFINITE = 1e8


@register_head
@dataclass(frozen=True)
class FCOSHead(OneStageHead):
    """The one-stage head of FCOS, without anchors: ``FCOS``.

    It has the improvements of the paper's last version: centre sampling, GIoU loss, and centerness beside the boxes.
    """

    NAME: ClassVar[str] = "FCOS"
    OPTIMIZATION: ClassVar[Optimization] = ONE_STAGE.model_copy(update={"clip_gradients": 35.0})
    MORE_LEVELS: ClassVar[Config] = {"add_extra_convs": "on_output", "relu_before_extra_convs": True}

    def config(self, features: Features, rpn: RPN | None, classes: int, detector: Detector) -> Config:
        """Return the config's ``type``, ``bbox_head`` and ``test_cfg``."""
        strides = list(features.strides)
        # Each level finds the objects whose farthest side is between the bounds of the level below it and its own: 64
        # pixels at stride 8, doubling with each level.
        bounds = [-1, *(detector.anchor_scale * stride for stride in strides[:-1]), _INFINITE]
        return {
            "type": "FCOS",
            "bbox_head": {
                "type": "FCOSHead",
                **self._branches(features, classes, detector),
                "strides": strides,
                "regress_ranges": list(itertools.pairwise(bounds)),
                "norm_on_bbox": True,
                "centerness_on_reg": True,
                "center_sampling": True,
                "conv_bias": True,
                "loss_cls": focal_loss(),
                "loss_bbox": {"type": "GIoULoss", "loss_weight": 1.0},
                "loss_centerness": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
                **detector.published_head_layers,
            },
            "test_cfg": dense_test_config(detector, iou=0.6),
        }
