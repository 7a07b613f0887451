"""Detector: the settings that all detectors of a search have in common, whatever their parts."""

from typing import Literal

from smnas_optuna.parts.part import Config
from smnas_optuna.parts.section import PositiveFloat, PositiveInt, Section


class Detector(Section):
    """What all detectors of a search have in common; the defaults are MMDetection's.

    Args:
        norm: Normalisation of the backbone: ``BN``, ``SyncBN``, whose statistics are of the images on all GPUs of a
            trial, or ``GN``, which also goes into neck, RPN and RetinaNet head.
        weight_standardization: Standardise the weights of the convolutions that a normalisation follows.
        anchor_scale: Side of an RPN's square anchor in strides of its level.
        proposals: Most proposals per image that reach the RCNN head in testing; half as many with guided anchoring,
            at most 300.
        roi_samples: Proposals per image that an RCNN head learns from.
        fc_channels: Width of the RCNN head's two fully connected layers.
        retina_convs: Convolutions in each branch of the RetinaNet head.
        max_detections: Detections per image.
    """

    norm: Literal["BN", "SyncBN", "GN"] = "BN"
    weight_standardization: bool = False
    anchor_scale: PositiveFloat = 8
    proposals: PositiveInt = 1000
    roi_samples: PositiveInt = 512
    fc_channels: PositiveInt = 1024
    retina_convs: PositiveInt = 4
    max_detections: PositiveInt = 100

    @property
    def backbone_layers(self) -> Config:
        """Kinds of convolution and normalisation of a backbone: ``conv_cfg`` and ``norm_cfg``."""
        norm: Config = {"type": self.norm, "requires_grad": True}
        if self.norm == "GN":
            norm = {"type": "DividingGroupNorm", "num_groups": 32, "requires_grad": True}
        return {"conv_cfg": {"type": "ConvWS"} if self.weight_standardization else None, "norm_cfg": norm}

    @property
    def layers(self) -> Config:
        """The same of necks and heads, which have no normalisation in the classic detectors: nothing then."""
        return self.backbone_layers if self.norm == "GN" else {}
