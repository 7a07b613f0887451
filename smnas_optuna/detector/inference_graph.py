"""A detector as a function of tensors only, which ``torch.export`` can export to ONNX.

MMDetection predicts with lists of records whose lengths depend on the image. This module computes the same with tensors
of fixed shape, in which empty rows are marked; only within non-maximum suppression do shapes depend on the image.
Layers, anchors and box coders are the detector's own. torchvision's operators replace mmcv's, which no exporter
supports.
"""

from functools import singledispatch
from typing import Any

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  # registers torch.ops.torchvision
from torch import Tensor, nn

from smnas_optuna.detector import mmcv_ops
from smnas_optuna.detector.deployment import prepare_for_deployment

mmcv_ops.install()
from mmdet.models.dense_heads import GFLHead  # noqa: E402  # imports mmcv.ops

# Boxes n x 4, scores n, and groups n; non-maximum suppression works within a group.
ScoredBoxes = tuple[Tensor, Tensor, Tensor]

NOTHING = -1  # the label, or score, of an empty row


class InferenceGraph(nn.Module):
    """Detects objects in one image.

    The image is in the upper left corner of a canvas of fixed size. Everything outside of the image is padding,
    whatever values it has.

    Args:
        model: An MMDetection detector that is built from a config of
            :func:`smnas_optuna.parts.model_config.model_config`; it is copied.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = prepare_for_deployment(model)

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect objects.

        Args:
            image: The canvas, ``1 x 3 x height x width``, RGB, 0 to 255; its sides are multiples of 32.
            size: Height and width of the image on the canvas, 2, int64.

        Returns:
            Boxes, ``n x 4``: x1, y1, x2, y2 in pixels of the canvas; scores, ``n``, 0 to 1, highest first; labels,
            ``n``, int64. n is the detector's largest number of detections; empty rows have a box of zeros, score 0
            and label -1.
        """
        features = self.model.extract_feat(self._normalise(image, size))
        extent = size.flip(0).repeat(2).to(image.dtype)
        if hasattr(self.model, "roi_head"):
            head = self.model.rpn_head
            propose = _propose_guided if hasattr(head, "feature_adaption") else _propose
            detections, settings = _classify(self.model.roi_head, features, *propose(head, features, extent), extent)
            threshold = settings.score_thr
        else:
            head = self.model.bbox_head
            settings = head.test_cfg
            detections = _decode(head, features, extent, threshold=settings.score_thr)
            detections = _drop(detections, ~_is_larger(detections[0], settings.min_bbox_size))
            threshold = 0.0  # it was compared with the scores of classes alone
        boxes, scores, labels = _suppress(detections, threshold, settings.nms, settings.max_per_img)
        return boxes, scores.clamp(min=0), labels

    def _normalise(self, image: Tensor, size: Tensor) -> Tensor:
        preprocessor = self.model.data_preprocessor
        if not preprocessor._channel_conversion:
            # Detectors whose images are not converted from blue, green and red were trained with these.
            image = image.flip(1)
        height, width = image.shape[-2:]
        covered = (torch.arange(height) < size[0])[:, None] & (torch.arange(width) < size[1])
        return torch.where(covered, (image - preprocessor.mean) / preprocessor.std, 0.0)


def _decode(head: Any, features: tuple[Tensor, ...], extent: Tensor, *, threshold: float | None = None) -> ScoredBoxes:
    """Return the boxes with the highest scores of each level.

    Args:
        head: A head that predicts at every location.
        features: Feature levels.
        extent: Width and height of the image, twice.
        threshold: Boxes with larger scores are kept, and grouped by class; None, for an RPN, to keep all, by level.
    """
    scores, regressions, *factors = head(features)
    priors = head.prior_generator.grid_priors([level.shape[-2:] for level in scores], device=extent.device)
    levels = []
    for number, (level_scores, level_regressions, level_priors) in enumerate(
        zip(scores, regressions, priors, strict=True)
    ):
        flat = _last(level_scores, 1)[:, 0].sigmoid()  # prior by prior, with a score per class for each
        best, index = flat.topk(min(head.test_cfg.nms_pre, len(flat)))
        prior, label = index // head.cls_out_channels, index % head.cls_out_channels
        rows = _last(level_regressions, level_regressions.shape[1] // head.num_base_priors)[prior]
        boxes = decode_boxes(head, level_priors[prior], rows, number)
        if threshold is None:
            label = torch.full_like(label, number)
        else:
            quality = _last(factors[0][number], 1)[:, 0].sigmoid()[prior] if factors else 1.0
            best = torch.where(best > threshold, best * quality, NOTHING)
        levels.append((boxes, best, label))
    boxes, best, groups = (torch.cat(parts) for parts in zip(*levels, strict=True))
    return _clip(boxes, extent), best, groups


@singledispatch
def decode_boxes(head: Any, priors: Tensor, regressions: Tensor, level: int) -> Tensor:
    """Return the boxes that a head regresses, as its own ``predict_by_feat`` does.

    Register a function for another class of heads with ``@decode_boxes.register(Head)`` if it differs from
    MMDetection's ``BaseDenseHead``.

    Args:
        head: The head.
        priors: Anchors, ``n x 4``, or points, ``n x 2``, of one level.
        regressions: What the head predicts for them, ``n x channels``.
        level: Number of the level, from 0.

    Returns:
        Boxes, ``n x 4``: x1, y1, x2, y2 in pixels.
    """
    boxes: Tensor = head.bbox_coder.decode(priors, regressions)
    return boxes


@decode_boxes.register(GFLHead)
def _decode_distributions(head: Any, priors: Tensor, regressions: Tensor, level: int) -> Tensor:
    stride = head.prior_generator.strides[level][0]
    boxes: Tensor = head.bbox_coder.decode(head.anchor_center(priors), head.integral(regressions) * stride)
    return boxes


def _propose(head: Any, features: tuple[Tensor, ...], extent: Tensor) -> tuple[Tensor, Tensor]:
    """Return an RPN's proposals, ``n x 4``, and whether each row has one, ``n``."""
    settings = head.test_cfg
    proposals = _decode(head, features, extent)
    proposals = _drop(proposals, ~_is_larger(proposals[0], settings.min_bbox_size))
    boxes, scores, _ = _suppress(proposals, 0.0, settings.nms, settings.max_per_img)
    return boxes, scores >= 0


def _propose_guided(head: Any, features: tuple[Tensor, ...], extent: Tensor) -> tuple[Tensor, Tensor]:
    """Return the proposals of guided anchoring (Wang et al. 2019), in the form of :func:`_propose`.

    The head's masked convolutions are computed at all locations, and results outside of the mask are dropped.
    """
    settings = head.test_cfg
    squares = head.square_anchor_generator.grid_priors([level.shape[-2:] for level in features], device=extent.device)
    levels = []
    for level, level_squares in zip(features, squares, strict=True):
        hidden = F.relu(head.rpn_conv(level))
        likely = _last(head.conv_loc(hidden), 1)[:, 0].sigmoid() >= head.loc_filter_thr
        shape = head.conv_shape(hidden)
        adaption = head.feature_adaption
        adapted = adaption.relu(_deform_convolve(adaption.conv_adaption, hidden, adaption.conv_offset(shape)))
        scores = torch.where(likely, _last(head.conv_cls(adapted), 1)[:, 0].sigmoid(), NOTHING)
        best, index = scores.topk(min(settings.nms_pre, len(scores)))
        enlarged = F.pad(_last(shape, 2)[index], (2, 0))
        anchors = head.anchor_coder.decode(level_squares[index], enlarged, wh_ratio_clip=1e-6)
        boxes = _clip(head.bbox_coder.decode(anchors, _last(head.conv_reg(adapted), 4)[index]), extent)
        proposals = boxes, best, torch.zeros_like(index)
        proposals = _drop(proposals, ~_is_larger(boxes, settings.min_bbox_size))
        levels.append(_suppress(proposals, 0.0, settings.nms, settings.nms_post)[:2])
    boxes, scores = (torch.cat(parts) for parts in zip(*levels, strict=True))
    best, index = scores.topk(min(settings.max_per_img, len(scores)))
    return boxes[index], best >= 0


def _deform_convolve(layer: Any, features: Tensor, offset: Tensor) -> Tensor:
    """Compute a deformable convolution by sampling the input of each kernel point and a 1x1 convolution of the samples.

    This is exact, and runs on every runtime with GridSample; few have a kernel for ONNX's DeformConv.

    Args:
        layer: A DeformConv2d of stride 1 and one group of weights.
        features: ``1 x channels x h x w``.
        offset: ``1 x (deform_groups * kernel points * 2) x h x w``, y before x as in mmcv.
    """
    _, channels, height, width = features.shape
    outputs, _, rows, columns = layer.weight.shape
    groups, points = layer.deform_groups, rows * columns
    kernel_y, kernel_x = torch.meshgrid(
        torch.arange(rows) * layer.dilation[0] - layer.padding[0],
        torch.arange(columns) * layer.dilation[1] - layer.padding[1],
        indexing="ij",
    )
    offset = offset.reshape(groups, points, 2, height, width)
    y = offset[:, :, 0] + kernel_y.reshape(points, 1, 1) + torch.arange(height)[:, None]
    x = offset[:, :, 1] + kernel_x.reshape(points, 1, 1) + torch.arange(width)
    # GridSample's coordinates are -1 at the outer edge of the first pixel and 1 at that of the last one.
    positions = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    sampled = F.grid_sample(
        features.reshape(groups, channels // groups, height, width),
        positions.reshape(groups, points * height, width, 2),
        align_corners=False,
    )
    return F.conv2d(
        sampled.reshape(1, channels * points, height, width), layer.weight.reshape(outputs, channels * points, 1, 1)
    )


def _classify(
    roi_head: Any, features: tuple[Tensor, ...], boxes: Tensor, present: Tensor, extent: Tensor
) -> tuple[ScoredBoxes, Any]:
    """Return a box per proposal and class after all RCNN stages, and the settings of the head for testing."""
    several = isinstance(roi_head.bbox_head, nn.ModuleList)
    heads = list(roi_head.bbox_head) if several else [roi_head.bbox_head]
    extractors = list(roi_head.bbox_roi_extractor) if several else [roi_head.bbox_roi_extractor]
    stages = []
    for head, extractor in zip(heads, extractors, strict=True):
        logits, deltas = head(_extract(extractor, features, boxes))
        stages.append(logits)
        # A head has deltas for each class, or one for all classes.
        repeats = deltas.shape[1] // 4
        boxes = _clip(head.bbox_coder.decode(boxes.repeat_interleave(repeats, 0), deltas.reshape(-1, 4)), extent)
    # Softmax of the mean logits; the last class is the background.
    scores = F.softmax(torch.stack(stages).mean(0), dim=1)[:, :-1]
    number, classes = scores.shape
    boxes = boxes.reshape(number, -1, 4).expand(number, classes, 4).reshape(-1, 4)
    labels = torch.arange(classes).repeat(number)
    detections = _drop((boxes, scores.reshape(-1), labels), ~present.repeat_interleave(classes))
    return detections, roi_head.test_cfg


def _extract(extractor: Any, features: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
    """Pool the features of each region from the level that fits its size.

    All regions are pooled from every level, but those of other levels are empty, which gives zeros and takes little
    time.
    """
    layers = extractor.roi_layers
    rois = F.pad(boxes, (1, 0))  # prepends the index of the image
    level = extractor.map_roi_levels(rois, len(layers))
    parts = [
        torch.ops.torchvision.roi_align(
            feature,
            torch.where((level == number)[:, None], rois, 0.0),
            layer.spatial_scale,
            *layer.output_size,
            layer.sampling_ratio,
            layer.aligned,
        )
        for number, (layer, feature) in enumerate(zip(layers, features[: len(layers)], strict=True))
    ]
    regions: Tensor = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
    return regions


def _suppress(scored: ScoredBoxes, threshold: float, settings: Any, limit: int) -> ScoredBoxes:
    """Apply non-maximum suppression within each group.

    Args:
        scored: Boxes without negative coordinates, scores and groups.
        threshold: Boxes with larger scores are kept; if it is 0.0, scores of 0 too.
        settings: MMDetection's settings of non-maximum suppression; the IoU threshold is used.
        limit: Number of rows to return.

    Returns:
        The kept boxes, highest scores first; then, up to the limit, empty rows, whose boxes are zeros, and whose scores
        and groups are :data:`NOTHING`.
    """
    boxes, scores, groups = scored
    is_kept = scores > threshold if threshold else scores >= 0
    boxes = torch.where(is_kept[:, None], boxes, 0.0)
    # Groups are shifted by the same distances as in MMDetection, so that rounding is the same.
    shifted = boxes + (groups * (boxes.max() + 1))[:, None]
    index = is_kept.nonzero()[:, 0]
    kept = index[torch.ops.torchvision.nms(shifted[index], scores[index], settings.iou_threshold)]
    empty = len(scores)  # index of an empty row, which is appended below
    kept = torch.cat([kept, torch.full((limit,), empty)])[:limit]
    return (
        F.pad(boxes, (0, 0, 0, 1))[kept],
        F.pad(scores, (0, 1), value=NOTHING)[kept],
        F.pad(groups, (0, 1), value=NOTHING)[kept],
    )


def _drop(scored: ScoredBoxes, dropped: Tensor) -> ScoredBoxes:
    boxes, scores, groups = scored
    return boxes, torch.where(dropped, NOTHING, scores), groups


def _is_larger(boxes: Tensor, side: float) -> Tensor:
    sides = boxes[:, 2:] - boxes[:, :2]
    return (sides > side).all(dim=1)


def _clip(boxes: Tensor, extent: Tensor) -> Tensor:
    return torch.minimum(boxes.clamp(min=0), extent)


def _last(maps: Tensor, columns: int) -> Tensor:
    """Return ``1 x channels x h x w`` as rows with ``columns`` entries, location by location."""
    return maps[0].permute(1, 2, 0).reshape(-1, columns)
