"""Detector: the settings that all detectors of a search share, whatever their parts."""

from typing import Literal

from pydantic import AliasChoices, Field

from smnas_optuna.parts.part import Config
from smnas_optuna.parts.section import PositiveFloat, PositiveInt, Section

_GROUPS: Config = {"type": "DividingGroupNorm", "num_groups": 32, "requires_grad": True}


class Detector(Section):
    """Settings that all detectors of a search share; the defaults are MMDetection's.

    Args:
        norm: Normalisation layers of the backbone: ``BN``; ``SyncBN``, whose statistics are computed over all GPUs of
            a trial; or ``GN``, which necks, RPNs and one-stage heads then have too. Backbones of timm have the layers
            that timm gives them.
        weight_standardization: Standardise the weights of each convolution that a normalisation layer follows.
        anchor_scale: Side of an RPN's square anchor, in strides of its level.
        proposals: Largest number of proposals per image that the RCNN head gets in testing; with guided anchoring half
            of it, and at most 300.
        roi_samples: Proposals per image that the loss of an RCNN head is computed on.
        fc_channels: Width of the two fully connected layers of the RCNN head.
        head_convs: Convolutions in each branch of a one-stage head; RTMDet's have half of it, as published.
        max_detections: Largest number of detections per image.
    """

    norm: Literal["BN", "SyncBN", "GN"] = "BN"
    weight_standardization: bool = False
    anchor_scale: PositiveFloat = 8
    proposals: PositiveInt = 1000
    roi_samples: PositiveInt = 512
    fc_channels: PositiveInt = 1024
    # Former recipes, and those that studies have recorded, call it retina_convs.
    head_convs: PositiveInt = Field(default=4, validation_alias=AliasChoices("head_convs", "retina_convs"))
    max_detections: PositiveInt = 100

    @property
    def has_published_layers(self) -> bool:
        """Whether backbones have the layers that published weights were trained with."""
        return self.norm != "GN" and not self.weight_standardization

    @property
    def backbone_layers(self) -> Config:
        """``conv_cfg`` and ``norm_cfg`` of backbones."""
        return self._layers(_GROUPS if self.norm == "GN" else {"type": self.norm, "requires_grad": True})

    @property
    def published_head_layers(self) -> Config:
        """``conv_cfg`` and ``norm_cfg`` of one-stage heads that are published with group normalisation."""
        return self._layers(_GROUPS)

    @property
    def layers(self) -> Config:
        """``conv_cfg`` and ``norm_cfg`` of necks and heads; empty unless ``norm`` is ``GN``."""
        return self.backbone_layers if self.norm == "GN" else {}

    def _layers(self, norm: Config) -> Config:
        return {"conv_cfg": {"type": "ConvWS"} if self.weight_standardization else None, "norm_cfg": dict(norm)}
