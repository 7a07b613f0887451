"""RCNN heads: the one of Faster R-CNN (Ren et al. 2015) and the cascade (Cai & Vasconcelos 2018)."""

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from smnas_optuna.parts.anchors import assigner, box_coder, random_sampler
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.heads.head import WIDTH, Head, capacity_of, check_width, register_head, scaled_channels
from smnas_optuna.parts.levels import Features
from smnas_optuna.parts.part import Config
from smnas_optuna.parts.rpns.rpn import RPN

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing since Python 3.11

# For each stage of a cascade: IoU above which a proposal is positive, loss weight, standard deviations of box deltas;
# all from Cascade R-CNN (Cai & Vasconcelos 2018), the fourth IoU from its Table 4. The paper does not give the fourth
# weight and deviations; they continue the series.
_CASCADE_IOUS = (0.5, 0.6, 0.7, 0.75)
_CASCADE_WEIGHTS = (1.0, 0.5, 0.25, 0.125)
_CASCADE_DELTA_STDS = (
    (0.1, 0.1, 0.2, 0.2),
    (0.05, 0.05, 0.1, 0.1),
    (0.033, 0.033, 0.067, 0.067),
    (0.025, 0.025, 0.05, 0.05),
)

# Largest number of boxes, of all classes, that one call of non-maximum suppression gets; with more, mmcv calls it once
# per class. Its default of 10,000 is less than 300 proposals of guided anchoring times 80 classes.
_MAX_BOXES_PER_NMS_CALL = 30_000


@register_head
@dataclass(frozen=True)
class RCNNHead(Head):
    """RCNN head with two fully connected layers, ``2FC``, or a cascade of 2 to 4 such stages, ``Cascade(n=3)``.

    With layers that are half as wide, these are ``2FC(w=0.5)`` and ``Cascade(n=3,w=0.5)``.

    Args:
        stages: 1 for ``2FC``, 2 to 4 for a cascade.
        width: Width of the fully connected layers relative to that of all detectors of the search, above 0.

    Raises:
        ValueError: An argument is out of range.
    """

    FORMS: ClassVar[tuple[str, ...]] = ("2FC", "Cascade(n=2)", "Cascade(n=3)", "Cascade(n=4)")
    NEEDS_RPN: ClassVar[bool] = True

    stages: int = 1
    width: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.stages <= 4:
            raise ValueError(f"head: found a cascade of {self.stages} stages, expected 2 to 4")
        check_width(self, self.width)

    def __str__(self) -> str:
        arguments = [f"n={self.stages}"] if self.is_cascade else []
        arguments += [] if self.width == 1 else [f"w={self.width:g}"]
        return f"{'Cascade' if self.is_cascade else '2FC'}{'(' + ','.join(arguments) + ')' if arguments else ''}"

    @classmethod
    def parse(cls, text: str) -> "Self | None":
        """Parse ``2FC`` or ``Cascade(n=STAGES)``, also with a width; None for any other text."""
        match = re.fullmatch(rf"2FC(?:\(w=({WIDTH})\))?|Cascade\(n=([2-4])(?:,w=({WIDTH}))?\)", text)
        return cls(int(match[2] or 1), float(match[1] or match[3] or 1)) if match else None

    @property
    def is_cascade(self) -> bool:
        """Whether the head has several stages."""
        return self.stages > 1

    @property
    def place(self) -> tuple[str, tuple[int, ...]]:
        """More stages and wider layers are bigger, ``2FC`` being a cascade of one."""
        return type(self).__name__, (self.stages, capacity_of(self.width))

    def with_width(self, width: float) -> "Self":
        """Return this head with fully connected layers of another width."""
        return replace(self, width=width)

    def config(self, features: Features, rpn: RPN | None, classes: int, detector: Detector) -> Config:
        """Return the config's ``type``, ``rpn_head``, ``roi_head``, ``train_cfg`` and ``test_cfg``.

        Its fully connected layers have no normalisation, whatever ``detector.norm`` is.
        """
        assert rpn is not None
        return {
            "type": "CascadeRCNN" if self.is_cascade else "FasterRCNN",
            "rpn_head": rpn.config(features, detector),
            "roi_head": self._roi_head(features, rpn, classes, detector),
            "train_cfg": {
                "rpn": rpn.train_config(features),
                "rpn_proposal": rpn.proposal_config(features, detector, cascade=self.is_cascade),
                "rcnn": self._train_config(rpn, detector),
            },
            "test_cfg": {"rpn": rpn.test_config(features, detector), "rcnn": _test_config(rpn, detector)},
        }

    def _roi_head(self, features: Features, rpn: RPN, classes: int, detector: Detector) -> Config:
        strides = list(features.roi_strides)
        extractor = {
            "type": "ExactRoIExtractor",
            "roi_layer": {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0},
            "out_channels": features.channels,
            "featmap_strides": strides,
            # 56 pixels at stride 4, by equation 1 of FPN (Lin et al. 2017); in proportion for other first levels.
            "finest_scale": 14 * strides[0],
        }
        # Guided anchors fit better, so the deltas of a single stage are smaller (Wang et al. 2019).
        first = 1 if rpn.PRECISE and not self.is_cascade else 0
        stages = [
            {
                "type": "Shared2FCBBoxHead",
                "in_channels": features.channels,
                "fc_out_channels": scaled_channels(detector.fc_channels, self.width),
                "roi_feat_size": 7,
                "num_classes": classes,
                "bbox_coder": box_coder(stds),
                "reg_class_agnostic": self.is_cascade,
                "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
                "loss_bbox": {"type": "SmoothL1Loss", "beta": 1.0, "loss_weight": 1.0}
                if self.is_cascade
                else {"type": "L1Loss", "loss_weight": 1.0},
            }
            for stds in _CASCADE_DELTA_STDS[first : first + self.stages]
        ]
        if not self.is_cascade:
            return {"type": "StandardRoIHead", "bbox_roi_extractor": extractor, "bbox_head": stages[0]}
        return {
            "type": "CascadeRoIHead",
            "num_stages": self.stages,
            "stage_loss_weights": list(_CASCADE_WEIGHTS[: self.stages]),
            "bbox_roi_extractor": extractor,
            "bbox_head": stages,
        }

    def _train_config(self, rpn: RPN, detector: Detector) -> Config | list[Config]:
        samples = max(1, detector.roi_samples // 2) if rpn.PRECISE else detector.roi_samples
        ious = (0.6,) if rpn.PRECISE and not self.is_cascade else _CASCADE_IOUS[: self.stages]
        stages: list[Config] = [
            {
                "assigner": assigner(iou, iou, iou, match_low_quality=False),
                "sampler": random_sampler(samples, 0.25, with_ground_truth=True),
                "pos_weight": -1,
                "debug": False,
            }
            for iou in ious
        ]
        return stages if self.is_cascade else stages[0]


def _test_config(rpn: RPN, detector: Detector) -> Config:
    return {
        # With fewer but better proposals scores are lower, so the threshold is lower too.
        "score_thr": 0.001 if rpn.PRECISE else 0.05,
        "nms": {"type": "nms", "iou_threshold": 0.5, **({"split_thr": _MAX_BOXES_PER_NMS_CALL} if rpn.PRECISE else {})},
        "max_per_img": detector.max_detections,
    }
