"""Feature pyramid networks (Lin et al. 2017)."""

from dataclasses import dataclass
from typing import ClassVar

from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.necks.neck import Neck, register_neck
from smnas_optuna.parts.part import Config


@register_neck
@dataclass(frozen=True)
class FPN(Neck):
    """Feature pyramid network: ``FPN(P2-P3:P2-P5,c=256)``; see :class:`~smnas_optuna.parts.necks.neck.Neck`.

    Another kind of pyramid, whose module in MMDetection's registry has the same arguments as FPN, is a subclass with a
    ``NAME`` of its own.
    """

    NAME: ClassVar[str] = "FPN"

    def config(self, channels: list[int], more_levels: Config, detector: Detector) -> Config:
        """Return the config; see :class:`~smnas_optuna.parts.necks.neck.Neck`."""
        return {
            "type": self.NAME,
            "in_channels": channels,
            "out_channels": self.channels,
            "num_outs": len(self.output_levels),
            **more_levels,
            **detector.layers,
        }
