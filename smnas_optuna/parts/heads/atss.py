"""The one-stage head of ATSS (Zhang et al. 2020): adaptive training sample selection."""

from dataclasses import dataclass
from typing import ClassVar

from smnas_optuna.parts.anchors import box_coder, focal_loss, one_anchor
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.heads.head import NamedHead, branch_channels, dense_test_config, register_head
from smnas_optuna.parts.levels import Features
from smnas_optuna.parts.part import Config
from smnas_optuna.parts.rpns.rpn import RPN


@register_head
@dataclass(frozen=True)
class ATSSHead(NamedHead):
    """The one-stage head of ATSS, with one anchor at each location: ``ATSS``."""

    NAME: ClassVar[str] = "ATSS"
    MORE_LEVELS: ClassVar[Config] = {"add_extra_convs": "on_output"}

    def config(self, features: Features, rpn: RPN | None, classes: int, detector: Detector) -> Config:
        """Return the config's ``type``, ``bbox_head``, ``train_cfg`` and ``test_cfg``."""
        return {
            "type": "ATSS",
            "bbox_head": {
                "type": "ATSSHead",
                "num_classes": classes,
                "in_channels": features.channels,
                "feat_channels": branch_channels(features),
                "stacked_convs": detector.head_convs,
                "anchor_generator": one_anchor(features, detector),
                "bbox_coder": box_coder((0.1, 0.1, 0.2, 0.2)),
                "loss_cls": focal_loss(),
                "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
                "loss_centerness": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
                **detector.published_head_layers,
            },
            "train_cfg": {
                "assigner": {"type": "ATSSAssigner", "topk": 9},
                "allowed_border": -1,
                "pos_weight": -1,
                "debug": False,
            },
            "test_cfg": dense_test_config(detector, iou=0.6),
        }
