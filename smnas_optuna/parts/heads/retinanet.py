"""The one-stage head of RetinaNet (Lin et al. 2017)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from smnas_optuna.parts.anchors import assigner, box_coder, focal_loss, one_level_scales
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.heads.head import Head
from smnas_optuna.parts.levels import Features
from smnas_optuna.parts.part import Config
from smnas_optuna.parts.rpns.rpn import RPN

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing since Python 3.11


@dataclass(frozen=True)
class RetinaNetHead(Head):
    """The one-stage head of RetinaNet: ``RetinaNet``."""

    TEXTS: ClassVar[str] = "RetinaNet"
    NEEDS_RPN: ClassVar[bool] = False
    EXTRA_CONVS: ClassVar[Literal["on_input", False]] = "on_input"

    def __str__(self) -> str:
        return "RetinaNet"

    @classmethod
    def parse(cls, text: str) -> "Self | None":
        """Parse ``RetinaNet``; None for any other text."""
        return cls() if text == "RetinaNet" else None

    @property
    def place(self) -> tuple[str, tuple[int, ...]]:
        """All RetinaNet heads are equal."""
        return type(self).__name__, ()

    def config(self, features: Features, rpn: RPN | None, classes: int, detector: Detector) -> Config:
        """Return the config's ``type``, ``bbox_head``, ``train_cfg`` and ``test_cfg``."""
        strides, channels = list(features.strides), features.channels
        sizes: Config = {"octave_base_scale": detector.anchor_scale / 2, "scales_per_octave": 3}
        if features.one_level:
            sizes = {"scales": one_level_scales(detector, strides[0])}
        return {
            "type": "RetinaNet",
            "bbox_head": {
                "type": "RetinaHead",
                "num_classes": classes,
                "in_channels": channels,
                # With ResNet50's 1024 channels at that level, the branches would cost three times ResNet50 itself.
                "feat_channels": min(channels, 256) if features.one_level else channels,
                "stacked_convs": detector.retina_convs,
                "anchor_generator": {"type": "AnchorGenerator", "ratios": [0.5, 1.0, 2.0], "strides": strides, **sizes},
                "bbox_coder": box_coder(),
                "loss_cls": focal_loss(),
                "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
                **detector.layers,
            },
            "train_cfg": {
                "assigner": assigner(0.5, 0.4, 0.0, match_low_quality=True),
                "sampler": {"type": "PseudoSampler"},
                "allowed_border": -1,
                "pos_weight": -1,
                "debug": False,
            },
            "test_cfg": {
                "nms_pre": 1000,
                "min_bbox_size": 0,
                "score_thr": 0.05,
                "nms": {"type": "nms", "iou_threshold": 0.5},
                "max_per_img": detector.max_detections,
            },
        }
