"""The one-stage head of ATSS (Zhang et al. 2020): adaptive training sample selection."""

from dataclasses import dataclass
from typing import ClassVar

from smnas_optuna.parts.anchors import box_coder, focal_loss, one_anchor
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.heads.head import register_head
from smnas_optuna.parts.heads.one_stage import OneStageHead, dense_test_config, dense_train_config
from smnas_optuna.parts.levels import Features
from smnas_optuna.parts.part import Config
from smnas_optuna.parts.rpns.rpn import RPN


@register_head
@dataclass(frozen=True)
class ATSSHead(OneStageHead):
    """The one-stage head of ATSS, with one anchor at each location: ``ATSS``."""

    NAME: ClassVar[str] = "ATSS"
    # The detector's type in MMDetection, which is also the beginning of its head's.
    TYPE: ClassVar[str] = "ATSS"
    MORE_LEVELS: ClassVar[Config] = {"add_extra_convs": "on_output"}

    def config(self, features: Features, rpn: RPN | None, classes: int, detector: Detector) -> Config:
        """Return the config's ``type``, ``bbox_head``, ``train_cfg`` and ``test_cfg``."""
        return {
            "type": self.TYPE,
            "bbox_head": {
                "type": f"{self.TYPE}Head",
                **self._branches(features, classes, detector),
                "anchor_generator": one_anchor(features, detector),
                "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
                **self._predictions(),
                **detector.published_head_layers,
            },
            "train_cfg": dense_train_config({"type": "ATSSAssigner", "topk": 9}),
            "test_cfg": dense_test_config(detector, iou=0.6),
        }

    def _predictions(self) -> Config:
        """Return what the head predicts beside the classes, and its losses but that of boxes."""
        return {
            "bbox_coder": box_coder((0.1, 0.1, 0.2, 0.2)),
            "loss_cls": focal_loss(),
            "loss_centerness": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
        }
