"""Path aggregation (Liu et al. 2018)."""

from dataclasses import dataclass
from typing import ClassVar

from smnas_optuna.parts.necks.fpn import FPN
from smnas_optuna.parts.necks.neck import register_neck


@register_neck
@dataclass(frozen=True)
class PAFPN(FPN):
    """An FPN with a second path, from the fine levels back to the coarse ones: ``PAFPN(P1-P5,c=256)``."""

    NAME: ClassVar[str] = "PAFPN"
