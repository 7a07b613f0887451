"""Guided anchoring (Wang et al. 2019): an RPN that predicts the locations and shapes of its anchors."""

import math
from dataclasses import dataclass
from typing import ClassVar

from smnas_optuna.parts.anchors import assigner, box_coder, focal_loss, random_sampler
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.levels import Features
from smnas_optuna.parts.optimization import Optimization
from smnas_optuna.parts.part import Config
from smnas_optuna.parts.rpns.rpn import RPN, register_rpn


@register_rpn
@dataclass(frozen=True)
class GuidedAnchoringRPN(RPN):
    """RPN with guided anchoring: ``GA-RPN``."""

    NAME: ClassVar[str] = "GA-RPN"
    PRECISE: ClassVar[bool] = True
    OPTIMIZATION: ClassVar[Optimization] = Optimization(clip_gradients=35)

    def config(self, features: Features, detector: Detector) -> Config:
        """Return the ``rpn_head`` of a config."""
        strides = list(features.strides)
        scale = detector.anchor_scale
        return {
            "type": "NormalizedGARPNHead" if detector.layers else "LenientGARPNHead",
            "in_channels": features.channels,
            "feat_channels": features.channels,
            "deform_groups": math.gcd(4, features.channels),
            "approx_anchor_generator": {
                "type": "AnchorGenerator",
                "octave_base_scale": scale,
                "scales_per_octave": 3,
                "ratios": [0.5, 1.0, 2.0],
                "strides": strides,
            },
            "square_anchor_generator": {
                "type": "AnchorGenerator",
                "ratios": [1.0],
                "scales": [scale],
                "strides": strides,
            },
            "anchor_coder": box_coder((0.07, 0.07, 0.14, 0.14)),
            "bbox_coder": box_coder((0.07, 0.07, 0.11, 0.11)),
            "loc_filter_thr": 0.01,
            "loss_loc": focal_loss(),
            "loss_shape": {"type": "BoundedIoULoss", "beta": 0.2, "loss_weight": 1.0},
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
            "loss_bbox": {"type": "SmoothL1Loss", "beta": 1.0, "loss_weight": 1.0},
            **detector.layers,
        }

    def train_config(self, features: Features) -> Config:
        """Return ``rpn`` of the config's ``train_cfg``."""
        # Guided anchors start from squares of one size per level. A single level has to find objects of all sizes, so
        # the best square of each object has to learn from it, however small the IoU.
        min_best_iou = 0.0 if features.one_level else 0.3
        return super().train_config(features) | {
            "ga_assigner": assigner(0.7, 0.3, min_best_iou, match_low_quality=True) | {"type": "ApproxMaxIoUAssigner"},
            "ga_sampler": random_sampler(256, 0.5, with_ground_truth=False),
            "center_ratio": 0.2,
            "ignore_ratio": 0.5,
        }

    def proposal_config(self, features: Features, detector: Detector, *, cascade: bool) -> Config:
        """Return ``rpn_proposal`` of the config's ``train_cfg``: which proposals are kept in training."""
        return super().proposal_config(features, detector, cascade=cascade) | _fewer_proposals(detector)

    def test_config(self, features: Features, detector: Detector) -> Config:
        """Return ``rpn`` of the config's ``test_cfg``: which proposals are kept in testing."""
        return super().test_config(features, detector) | _fewer_proposals(detector)


def _fewer_proposals(detector: Detector) -> Config:
    return {"nms_post": detector.proposals, "max_per_img": min(300, max(1, detector.proposals // 2))}
