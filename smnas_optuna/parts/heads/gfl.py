"""The one-stage head of generalized focal loss (Li et al. 2020)."""

from dataclasses import dataclass
from typing import ClassVar

from smnas_optuna.parts.anchors import one_anchor
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.heads.head import NamedHead, branch_channels, dense_test_config, register_head
from smnas_optuna.parts.levels import Features
from smnas_optuna.parts.part import Config
from smnas_optuna.parts.rpns.rpn import RPN


@register_head
@dataclass(frozen=True)
class GFLHead(NamedHead):
    """The one-stage head of generalized focal loss, which predicts distributions of distances: ``GFL``."""

    NAME: ClassVar[str] = "GFL"
    MORE_LEVELS: ClassVar[Config] = {"add_extra_convs": "on_output"}

    def config(self, features: Features, rpn: RPN | None, classes: int, detector: Detector) -> Config:
        """Return the config's ``type``, ``bbox_head``, ``train_cfg`` and ``test_cfg``."""
        return {
            "type": "GFL",
            "bbox_head": {
                "type": "GFLHead",
                "num_classes": classes,
                "in_channels": features.channels,
                "feat_channels": branch_channels(features),
                "stacked_convs": detector.head_convs,
                "anchor_generator": one_anchor(features, detector),
                "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0},
                "loss_dfl": {"type": "DistributionFocalLoss", "loss_weight": 0.25},
                "reg_max": 16,
                "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
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
