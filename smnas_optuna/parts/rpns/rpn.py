"""Region proposal network (Ren et al. 2015)."""

from dataclasses import dataclass
from typing import ClassVar

from smnas_optuna.parts.anchors import assigner, box_coder, one_level_scales, random_sampler
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.levels import Features
from smnas_optuna.parts.part import Config, NamedPart, Registry


@dataclass(frozen=True)
class RPN(NamedPart):
    """Region proposal network: ``RPN``. Another kind is a subclass with a ``NAME`` of its own."""

    # The canonical text.
    NAME: ClassVar[str] = "RPN"
    # Whether there are fewer but better proposals than those of anchors at all locations.
    PRECISE: ClassVar[bool] = False

    def config(self, features: Features, detector: Detector) -> Config:
        """Return the ``rpn_head`` of a config."""
        strides = list(features.strides)
        one_level = features.one_level
        return {
            "type": "NormalizedRPNHead" if detector.layers else "ExactRPNHead",
            "in_channels": features.channels,
            "feat_channels": features.channels,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "scales": one_level_scales(detector, strides[0]) if one_level else [detector.anchor_scale],
                "ratios": [0.5, 1.0, 2.0],
                "strides": strides,
            },
            "bbox_coder": box_coder(),
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
            **detector.layers,
        }

    def train_config(self, features: Features) -> Config:
        """Return ``rpn`` of the config's ``train_cfg``."""
        return {
            "assigner": assigner(0.7, 0.3, 0.3, match_low_quality=True),
            "sampler": random_sampler(256, 0.5, with_ground_truth=False),
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        }

    def proposal_config(self, features: Features, detector: Detector, *, cascade: bool) -> Config:
        """Return ``rpn_proposal`` of the config's ``train_cfg``: which proposals are kept in training.

        Args:
            features: Feature levels that the RPN uses.
            detector: Settings that all detectors of the search share.
            cascade: Whether the RCNN head has several stages.
        """
        return {
            "nms_pre": (12 if features.one_level else 2) * detector.proposals,
            "max_per_img": (2 if features.one_level or cascade else 1) * detector.proposals,
            "nms": {"type": "nms", "iou_threshold": 0.7},
            "min_bbox_size": 0,
        }

    def test_config(self, features: Features, detector: Detector) -> Config:
        """Return ``rpn`` of the config's ``test_cfg``: which proposals are kept in testing."""
        return {
            # Per level; a single level has as many as in MMDetection's C4 models.
            "nms_pre": (6 if features.one_level else 1) * detector.proposals,
            "max_per_img": detector.proposals,
            "nms": {"type": "nms", "iou_threshold": 0.7},
            "min_bbox_size": 0,
        }


RPNS: Registry[RPN] = Registry("RPN")
"""The families of RPNs."""

register_rpn = RPNS.register
register_rpn(RPN)
