"""The one-stage head of RTMDet (Lyu et al. 2022)."""

from dataclasses import dataclass
from typing import ClassVar

from smnas_optuna.parts.backbones.cspnext import RTMDET
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.heads.head import register_head
from smnas_optuna.parts.heads.one_stage import OneStageHead, dense_test_config, dense_train_config
from smnas_optuna.parts.levels import Features
from smnas_optuna.parts.optimization import Optimization
from smnas_optuna.parts.part import Config
from smnas_optuna.parts.rpns.rpn import RPN

# Channels of the heads of RTMDet-tiny and -s, which predict distances. All others predict their logarithms, as wider
# published ones: the first boxes then have the size of a stride instead of none, so that fewer steps are needed.
_PREDICTING_DISTANCES = (96, 128)


@register_head
@dataclass(frozen=True)
class RTMDetHead(OneStageHead):
    """The one-stage head of RTMDet, whose levels share convolutions but not normalisation: ``RTMDet``."""

    NAME: ClassVar[str] = "RTMDet"
    OPTIMIZATION: ClassVar[Optimization] = RTMDET

    def config(self, features: Features, rpn: RPN | None, classes: int, detector: Detector) -> Config:
        """Return the config's ``type``, ``bbox_head``, ``train_cfg`` and ``test_cfg``."""
        sizes = self._branches(features, classes, detector)
        return {
            "type": "RTMDet",
            "bbox_head": {
                "type": "RTMDetSepBNHead",
                **sizes,
                "stacked_convs": max(1, detector.head_convs // 2),
                "anchor_generator": {"type": "MlvlPointGenerator", "offset": 0, "strides": list(features.strides)},
                "bbox_coder": {"type": "DistancePointBBoxCoder"},
                "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0},
                "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
                "with_objectness": False,
                "exp_on_reg": sizes["feat_channels"] not in _PREDICTING_DISTANCES,
                "share_conv": True,
                "pred_kernel_size": 1,
                "act_cfg": {"type": "SiLU", "inplace": True},
                **detector.backbone_layers,
            },
            "train_cfg": dense_train_config({"type": "DynamicSoftLabelAssigner", "topk": 13}),
            "test_cfg": dense_test_config(detector, score=0.001, iou=0.65, candidates=30_000),
        }
