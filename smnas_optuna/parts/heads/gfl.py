"""The one-stage head of generalized focal loss (Li et al. 2020)."""

from dataclasses import dataclass
from typing import ClassVar

from smnas_optuna.parts.heads.atss import ATSSHead
from smnas_optuna.parts.heads.head import register_head
from smnas_optuna.parts.part import Config


@register_head
@dataclass(frozen=True)
class GFLHead(ATSSHead):
    """The one-stage head of generalized focal loss, which predicts distributions of distances: ``GFL``.

    Its anchors are those of ATSS, and assigned in the same way.
    """

    NAME: ClassVar[str] = "GFL"
    TYPE: ClassVar[str] = "GFL"

    def _predictions(self) -> Config:
        return {
            "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0},
            "loss_dfl": {"type": "DistributionFocalLoss", "loss_weight": 0.25},
            "reg_max": 16,
        }
