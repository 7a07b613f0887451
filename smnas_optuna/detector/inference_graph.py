"""A detector as a function of tensors alone, which ``torch.export`` and so ONNX can hold.

MMDetection predicts with lists of records whose lengths depend on the image. Here the same arithmetic is done with
tensors of fixed shape, and with marks for rows that hold nothing; only inside a non-maximum suppression do lengths
depend on the image. Layers, anchors and box coders are the detector's own. torchvision's operators take the place of
mmcv's, which no exporter knows.
"""

from typing import Any

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  # registers torch.ops.torchvision
from torch import Tensor, nn

from smnas_optuna.detector.deployment import prepare_for_deployment

Candidates = tuple[Tensor, Tensor, Tensor]  # boxes n x 4, scores n, groups n that suppress nothing of each other

NOTHING = -1  # the label, or score, of a row that holds nothing


class InferenceGraph(nn.Module):
    """What a detector finds in one image.

    A canvas of one size holds images of any size up to it at its left upper corner; how much of it an image covers is
    an input. What lies outside is padding, whatever is there.

    Args:
        model: An MMDetection detector of :func:`smnas_optuna.parts.model_config.model_config`; it is copied.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = prepare_for_deployment(model)

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect.

        Args:
            image: ``1 x 3 x height x width``, RGB, 0 to 255; sides are multiples of 32.
            size: 2, int64: height and width of the part that the image covers.

        Returns:
            Boxes, ``n x 4``: x1, y1, x2, y2 in pixels of ``image``; scores, ``n``, 0 to 1, highest first; labels,
            ``n``, int64. n is the most detections that the detector gives; rows that are not needed have a box of
            zeros, score 0 and label -1.
        """
        features = self.model.extract_feat(self._normalise(image, size))
        extent = size.flip(0).repeat(2).to(image.dtype)
        if hasattr(self.model, "roi_head"):
            head = self.model.rpn_head
            propose = _propose_guided if hasattr(head, "feature_adaption") else _propose
            candidates, settings = _classify(self.model.roi_head, features, *propose(head, features, extent), extent)
        else:
            head = self.model.bbox_head
            settings = head.test_cfg
            candidates = _decode_anchors(head, features, extent, class_groups=True)
            candidates = _drop(candidates, ~_is_larger(candidates[0], settings.min_bbox_size))
        boxes, scores, labels = _suppress(candidates, settings.score_thr, settings.nms, settings.max_per_img)
        return boxes, scores.clamp(min=0), labels

    def _normalise(self, image: Tensor, size: Tensor) -> Tensor:
        preprocessor = self.model.data_preprocessor
        height, width = image.shape[-2:]
        covered = (torch.arange(height) < size[0])[:, None] & (torch.arange(width) < size[1])
        return torch.where(covered, (image - preprocessor.mean) / preprocessor.std, 0.0)


def _decode_anchors(head: Any, features: tuple[Tensor, ...], extent: Tensor, *, class_groups: bool) -> Candidates:
    """Return the best-scoring anchors of each level as boxes, in groups by class or by level."""
    scores, deltas = head(features)
    anchors = head.prior_generator.grid_priors([level.shape[-2:] for level in scores], device=extent.device)
    levels = []
    for number, (level_scores, level_deltas, level_anchors) in enumerate(zip(scores, deltas, anchors, strict=True)):
        flat = _last(level_scores, 1)[:, 0].sigmoid()  # anchor by anchor, of each class after class
        best, index = flat.topk(min(head.test_cfg.nms_pre, len(flat)))
        anchor, label = index // head.cls_out_channels, index % head.cls_out_channels
        boxes = head.bbox_coder.decode(level_anchors[anchor], _last(level_deltas, 4)[anchor])
        levels.append((boxes, best, label if class_groups else torch.full_like(label, number)))
    boxes, best, groups = (torch.cat(parts) for parts in zip(*levels, strict=True))
    return _clip(boxes, extent), best, groups


def _propose(head: Any, features: tuple[Tensor, ...], extent: Tensor) -> tuple[Tensor, Tensor]:
    """Return an RPN's proposals, ``n x 4``, and whether a row has one, ``n``."""
    settings = head.test_cfg
    candidates = _decode_anchors(head, features, extent, class_groups=False)
    candidates = _drop(candidates, ~_is_larger(candidates[0], settings.min_bbox_size))
    boxes, scores, _ = _suppress(candidates, 0.0, settings.nms, settings.max_per_img)
    return boxes, scores >= 0


def _propose_guided(head: Any, features: tuple[Tensor, ...], extent: Tensor) -> tuple[Tensor, Tensor]:
    """Return the proposals of guided anchoring (Wang et al. 2019), as :func:`_propose` does.

    The head's masked convolutions are done everywhere, and what the mask would have left out is dropped.
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
        candidates = boxes, best, torch.zeros_like(index)
        candidates = _drop(candidates, ~_is_larger(boxes, settings.min_bbox_size))
        levels.append(_suppress(candidates, 0.0, settings.nms, settings.nms_post)[:2])
    boxes, scores = (torch.cat(parts) for parts in zip(*levels, strict=True))
    best, index = scores.topk(min(settings.max_per_img, len(scores)))
    return boxes[index], best >= 0


def _deform_convolve(layer: Any, features: Tensor, offset: Tensor) -> Tensor:
    """Deformable convolution as a sampling of each kernel point's input, and a 1x1 convolution of the samples.

    Exact, by any runtime that has GridSample; few have a kernel for ONNX's DeformConv.

    Args:
        layer: A DeformConv2d of stride 1 and one group of weights.
        features: ``1 x channels x h x w``.
        offset: ``1 x (deform_groups * kernel points * 2) x h x w``, as mmcv has it: y before x.
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
    # GridSample counts from -1, the outer edge of the first pixel, to 1, that of the last one.
    places = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    sampled = F.grid_sample(
        features.reshape(groups, channels // groups, height, width),
        places.reshape(groups, points * height, width, 2),
        align_corners=False,
    )
    return F.conv2d(
        sampled.reshape(1, channels * points, height, width), layer.weight.reshape(outputs, channels * points, 1, 1)
    )


def _classify(
    roi_head: Any, features: tuple[Tensor, ...], boxes: Tensor, present: Tensor, extent: Tensor
) -> tuple[Candidates, Any]:
    """Return what each RCNN stage in turn makes of proposals, a candidate per proposal and class, and its settings."""
    several = isinstance(roi_head.bbox_head, nn.ModuleList)
    heads = list(roi_head.bbox_head) if several else [roi_head.bbox_head]
    extractors = list(roi_head.bbox_roi_extractor) if several else [roi_head.bbox_roi_extractor]
    stages = []
    for head, extractor in zip(heads, extractors, strict=True):
        logits, deltas = head(_extract(extractor, features, boxes))
        stages.append(logits)
        # A head has deltas of each class, or for all.
        kinds = deltas.shape[1] // 4
        boxes = _clip(head.bbox_coder.decode(boxes.repeat_interleave(kinds, 0), deltas.reshape(-1, 4)), extent)
    # The averaged logits' softmax; background is the last.
    scores = F.softmax(torch.stack(stages).mean(0), dim=1)[:, :-1]
    number, classes = scores.shape
    boxes = boxes.reshape(number, -1, 4).expand(number, classes, 4).reshape(-1, 4)
    labels = torch.arange(classes).repeat(number)
    candidates = _drop((boxes, scores.reshape(-1), labels), ~present.repeat_interleave(classes))
    return candidates, roi_head.test_cfg


def _extract(extractor: Any, features: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
    """Cut each region out of the level that fits its size.

    Every level is asked for all regions, of which those of other levels are empty: that gives zeros and costs little.
    """
    layers = extractor.roi_layers
    rois = F.pad(boxes, (1, 0))  # the number of the image
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


def _suppress(candidates: Candidates, threshold: float, settings: Any, limit: int) -> Candidates:
    """Non-maximum suppression within each group.

    Args:
        candidates: Boxes have no negative corner.
        threshold: Only scores above it count; with 0.0, those from 0 on.
        settings: Of MMDetection: the overlap up to which two boxes stay.
        limit: Rows to return.

    Returns:
        The highest scores first; then, up to the limit, rows whose box is zeros, and score and group are
        :data:`NOTHING`.
    """
    boxes, scores, groups = candidates
    counts = scores > threshold if threshold else scores >= 0
    boxes = torch.where(counts[:, None], boxes, 0.0)
    # Groups are moved apart, as MMDetection does it, by the same distance and so with the same rounding.
    apart = boxes + (groups * (boxes.max() + 1))[:, None]
    index = counts.nonzero()[:, 0]
    kept = index[torch.ops.torchvision.nms(apart[index], scores[index], settings.iou_threshold)]
    nothing = len(scores)  # the number of a row that is added
    kept = torch.cat([kept, torch.full((limit,), nothing)])[:limit]
    return (
        F.pad(boxes, (0, 0, 0, 1))[kept],
        F.pad(scores, (0, 1), value=NOTHING)[kept],
        F.pad(groups, (0, 1), value=NOTHING)[kept],
    )


def _drop(candidates: Candidates, absent: Tensor) -> Candidates:
    boxes, scores, groups = candidates
    return boxes, torch.where(absent, NOTHING, scores), groups


def _is_larger(boxes: Tensor, side: float) -> Tensor:
    sides = boxes[:, 2:] - boxes[:, :2]
    return (sides > side).all(dim=1)


def _clip(boxes: Tensor, extent: Tensor) -> Tensor:
    return torch.minimum(boxes.clamp(min=0), extent)


def _last(maps: Tensor, columns: int) -> Tensor:
    """Return ``1 x channels x h x w`` as rows of so many columns, place by place."""
    return maps[0].permute(1, 2, 0).reshape(-1, columns)
