"""The one-stage head of RetinaNet (Lin et al. 2017)."""

from dataclasses import dataclass
from typing import ClassVar

from smnas_optuna.parts.anchors import assigner, box_coder, focal_loss, one_level_scales
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.heads.head import register_head
from smnas_optuna.parts.heads.one_stage import OneStageHead, dense_test_config, dense_train_config
from smnas_optuna.parts.levels import Features
from smnas_optuna.parts.part import Config
from smnas_optuna.parts.rpns.rpn import RPN


@register_head
@dataclass(frozen=True)
class RetinaNetHead(OneStageHead):
    """The one-stage head of RetinaNet: ``RetinaNet``."""

    NAME: ClassVar[str] = "RetinaNet"
    MORE_LEVELS: ClassVar[Config] = {"add_extra_convs": "on_input"}

    def config(self, features: Features, rpn: RPN | None, classes: int, detector: Detector) -> Config:
        """Return the config's ``type``, ``bbox_head``, ``train_cfg`` and ``test_cfg``."""
        strides = list(features.strides)
        sizes: Config = {"octave_base_scale": detector.anchor_scale / 2, "scales_per_octave": 3}
        if features.one_level:
            sizes = {"scales": one_level_scales(detector, strides[0])}
        return {
            "type": "RetinaNet",
            "bbox_head": {
                "type": "RetinaHead",
                **self._branches(features, classes, detector),
                "anchor_generator": {"type": "AnchorGenerator", "ratios": [0.5, 1.0, 2.0], "strides": strides, **sizes},
                "bbox_coder": box_coder(),
                "loss_cls": focal_loss(),
                "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
                **detector.layers,
            },
            "train_cfg": dense_train_config(
                assigner(0.5, 0.4, 0.0, match_low_quality=True), sampler={"type": "PseudoSampler"}
            ),
            "test_cfg": dense_test_config(detector, iou=0.5),
        }
