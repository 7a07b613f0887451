"""Losses of detectors on the meta device, where tensors have shapes but no values, for ``memory.py``."""

import math
from collections.abc import Iterator, Sequence
from functools import singledispatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from smnas_optuna.detector import mmcv_ops

mmcv_ops.install()
from mmdet.models.dense_heads import AnchorHead, ATSSHead, FCOSHead, GFLHead, RTMDetHead  # noqa: E402  # imports mmcv.ops
from mmdet.structures.bbox import bbox_overlaps  # noqa: E402  # imports mmcv.ops

# Largest number of anchors of a level that an object is assigned to: 9 by ATSS, 13 by RTMDet.
_CANDIDATES = 13


def detector_loss(model: Any, batch: Tensor, boxes: int, device: str) -> Tensor:
    """Run the forward pass of a training step, and return a loss that depends on every part of the detector.

    Args:
        model: A detector on the meta device, in training mode.
        batch: Images, ``n x 3 x h x w``.
        boxes: Number of boxes in each image.
        device: ``cuda`` or ``cpu``, which compute some losses differently.
    """
    features = model.extract_feat(batch)
    if not hasattr(model, "roi_head"):
        return dense_loss(model.bbox_head, features, boxes, device)
    loss = dense_loss(_with_meta_deformable_convolution(model.rpn_head), features, boxes, device)
    return loss + _region_loss(model.roi_head, model.train_cfg.rcnn, features)


@singledispatch
def dense_loss(head: Any, features: Sequence[Tensor], boxes: int, device: str) -> Tensor:
    """Return the loss of a head that predicts at every location.

    It creates the tensors that the head's own ``loss`` creates, but none that depend on their values, which tensors on
    the meta device do not have. Register a function for another class of heads with ``@dense_loss.register(Head)``; for
    a class without one the loss is the sum of its outputs.

    Args:
        head: The head, in training mode.
        features: Feature levels, each ``n x channels x h x w``.
        boxes: Number of boxes in each image.
        device: ``cuda`` or ``cpu``, which compute some losses differently.
    """
    return torch.stack([output.float().abs().sum() for output in _tensors(head(features))]).sum()


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    else:
        for output in outputs:
            yield from _tensors(output)


@dense_loss.register(AnchorHead)
def _anchor_loss(head: Any, features: Sequence[Tensor], boxes: int, device: str) -> Tensor:
    outputs = head(features)
    scores, deltas = outputs[:2]
    images = len(features[0])
    anchors = [score[0].numel() // head.cls_out_channels for score in scores]
    _assign_targets(head, images, sum(anchors), boxes)
    losses = []
    # For each level: anchors, their labels and the labels' weights, the boxes to predict and the boxes' weights.
    targets = [
        (
            torch.empty(images, number, 4),
            torch.empty(images * number, dtype=torch.long),
            torch.empty(images * number),
            torch.empty(images * number, 4),
            torch.empty(images * number, 4),
        )
        for number in anchors
    ]
    for score, delta, (_, labels, weights, goals, goal_weights) in zip(scores, deltas, targets, strict=True):
        logits = _flat(score, head.cls_out_channels)
        losses.append(_classification_loss(head.loss_cls, logits, labels, weights, device))
        predicted = _flat(delta, 4)
        losses.append((torch.abs(predicted - goals) * goal_weights).sum())
    # The shapes and locations of guided anchoring.
    losses += [extra.sum() for level in outputs[2:] for extra in level]
    return torch.stack(losses).sum()


def _assign_targets(head: Any, images: int, anchors: int, boxes: int) -> None:
    """Compute the IoUs of an image's boxes with all anchors; intermediate results are many times as large."""
    # Guided anchoring compares several anchors per location at once.
    each = getattr(head, "approxs_per_octave", 1)
    # The anchors, a copy for each image, and a reordered copy for the image that is being compared.
    copies = [torch.empty(each * anchors, 4) for _ in range(images + 2 if each > 1 else 1)]
    bbox_overlaps(copies[0], torch.empty(boxes, 4))


@dense_loss.register(ATSSHead)
def _atss_loss(head: Any, features: Sequence[Tensor], boxes: int, device: str) -> Tensor:
    scores, deltas, centernesses = head(features)
    targets = _adaptive_targets(scores, boxes)
    losses = []
    for score, delta, centerness, (labels, weights) in zip(scores, deltas, centernesses, targets, strict=True):
        logits = _flat(score, head.cls_out_channels).contiguous()
        losses.append(_classification_loss(head.loss_cls, logits, labels, weights, device))
        found = _positives(len(labels), len(features[0]) * boxes * _CANDIDATES)
        losses += [_flat(delta, 4)[found].abs().sum(), _flat(centerness, 1)[found].abs().sum()]
    return torch.stack(losses).sum()


@dense_loss.register(GFLHead)
def _gfl_loss(head: Any, features: Sequence[Tensor], boxes: int, device: str) -> Tensor:
    scores, distributions = head(features)
    targets = _adaptive_targets(scores, boxes)
    losses = []
    for score, distribution, (labels, weights) in zip(scores, distributions, targets, strict=True):
        logits = _flat(score, head.cls_out_channels)
        found = _positives(len(labels), len(features[0]) * boxes * _CANDIDATES)
        quality = logits.detach().sigmoid()
        losses.append(_flat(distribution, 4 * (head.reg_max + 1))[found].softmax(1).sum())
        losses.append((_quality_focal_loss(logits, found) * weights).sum())
        del quality
    return torch.stack(losses).sum()


@dense_loss.register(FCOSHead)
def _fcos_loss(head: Any, features: Sequence[Tensor], boxes: int, device: str) -> Tensor:
    scores, distances, centernesses = head(features)
    images = len(features[0])
    points = sum(score[0, 0].numel() for score in scores)
    # For each image: labels, and the distances to the sides of its box.
    targets = []
    for _ in range(images):
        # Of each point and each box: its area, the distances to its four sides and to those of its centre, what they
        # are computed of, and the least and the largest of them with their indices.
        pairs = [torch.empty(points, boxes, 29)]
        targets.append((torch.empty(points, dtype=torch.long), torch.empty(points, 4)))
        del pairs
    labels, goals = (torch.cat(parts) for parts in zip(*targets, strict=True))
    logits = torch.cat([_flat(score, head.cls_out_channels) for score in scores])
    predicted = torch.cat([_flat(distance, 4) for distance in distances])
    centerness = torch.cat([_flat(level, 1) for level in centernesses])
    found = _positives(len(labels), points * images)
    loss = _classification_loss(head.loss_cls, logits, labels, torch.empty(len(labels)), device)
    return loss + (predicted[found] - goals[found]).abs().sum() + centerness[found].abs().sum()


@dense_loss.register(RTMDetHead)
def _rtmdet_loss(head: Any, features: Sequence[Tensor], boxes: int, device: str) -> Tensor:
    scores, distances = head(features)
    images, classes = len(features[0]), head.cls_out_channels
    logits = torch.cat([_flat(score, classes).reshape(images, -1, classes) for score in scores], 1)
    decoded = torch.cat([_flat(distance, 4).reshape(images, -1, 4) for distance in distances], 1)
    points = logits.size(1)
    targets = []
    for _ in range(images):
        # Of each point in a box, which all of them may be, and each box: IoUs, costs, and for each class the score, the
        # label, and what the cost is computed of them.
        pairs = [torch.empty(points, boxes, 16), *(torch.empty(points, boxes, classes) for _ in range(6))]
        # The labels and their weights, boxes, and IoUs.
        targets.append(torch.empty(points, 8))
        del pairs
    losses = []
    start = 0
    for score in scores:
        flat = _flat(score, classes).contiguous()
        end = start + len(flat) // images
        found = _positives(len(flat), images * boxes * _CANDIDATES)
        losses.append((_quality_focal_loss(flat, found) * torch.empty(len(flat))).sum())
        losses.append(decoded[:, start:end].reshape(-1, 4)[found].abs().sum())
        start = end
    return torch.stack(losses).sum()


def _flat(level: Tensor, channels: int) -> Tensor:
    """Return ``n x (anchors * channels) x h x w`` as rows with ``channels`` entries."""
    return level.permute(0, 2, 3, 1).reshape(-1, channels)


def _positives(rows: int, most: int) -> Tensor:
    """Return indices of the rows that an object is assigned to."""
    return torch.empty(min(rows, most), dtype=torch.long)


def _adaptive_targets(scores: Sequence[Tensor], boxes: int) -> list[tuple[Tensor, Tensor]]:
    """Assign objects to anchors by ATSS, and return the labels and weights of the anchors of each level."""
    images = len(scores[0])
    sizes = [score[0, 0].numel() for score in scores]
    anchors = sum(sizes)
    kept = []
    for _ in range(images):
        mine = torch.empty(anchors, 4)
        overlaps = bbox_overlaps(mine, torch.empty(boxes, 4))
        # The distances of centres, in x and y, squared, and their sum.
        apart = [torch.empty(anchors, boxes, 2) for _ in range(2)]
        distances = torch.empty(anchors, boxes)
        del apart
        # For each object the centres of all anchors, and their IoUs twice.
        others = [torch.empty(boxes * anchors) for _ in range(4)]
        del overlaps, distances, others
        # Anchors, boxes to predict, their weights, labels with weights.
        kept.append((mine, torch.empty(anchors, 8), torch.empty(anchors, dtype=torch.long), torch.empty(anchors)))
    return [(torch.empty(images * size, dtype=torch.long), torch.empty(images * size)) for size in sizes]


def _quality_focal_loss(logits: Tensor, found: Tensor) -> Tensor:
    """Return the quality focal loss of each row, like MMDetection's."""
    probability = logits.sigmoid()
    nothing = torch.empty(logits.shape)
    losses = F.binary_cross_entropy_with_logits(logits, nothing, reduction="none") * probability.pow(2)
    classes = torch.empty(len(found), dtype=torch.long)
    losses[found, classes] = (logits[found, classes] - probability[found, classes]).abs().pow(2)
    return losses.sum(dim=1)


def _classification_loss(loss: Any, logits: Tensor, labels: Tensor, weights: Tensor, device: str) -> Tensor:
    if type(loss).__name__ != "FocalLoss":
        one_hot = torch.empty(logits.shape)
        return (F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none") * weights[:, None]).sum()
    if device == "cuda":
        losses: Tensor = _FocalLoss.apply(logits.contiguous(), labels)
        return (losses * weights[:, None]).sum()
    return loss(logits, labels, weights, avg_factor=1.0).sum()  # type: ignore[no-any-return]  # mmdet is untyped


class _FocalLoss(torch.autograd.Function):
    """The focal loss as a single operator, as on CUDA; on a CPU, MMDetection computes it with several operators."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        ctx.save_for_backward(logits, labels)
        losses = torch.zeros_like(logits)
        mmcv_ops.sigmoid_focal_loss_forward(logits, labels, logits.new_empty(0), losses, 2.0, 0.25)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, labels = ctx.saved_tensors
        slopes = torch.zeros_like(logits)
        mmcv_ops.sigmoid_focal_loss_backward(logits, labels, logits.new_empty(0), slopes, 2.0, 0.25)
        slopes *= gradients[0]
        return slopes, None


def _with_meta_deformable_convolution(rpn_head: Any) -> Any:
    """Return the RPN with guided anchoring's deformable convolution replaced by one for the meta device."""
    if hasattr(rpn_head, "feature_adaption"):
        layer = rpn_head.feature_adaption.conv_adaption
        layer.forward = lambda features, offset: _DeformableConvolution.apply(features, offset, layer.weight)
    return rpn_head


class _DeformableConvolution(torch.autograd.Function):
    """A 3x3 deformable convolution, which copies the windows of all locations.

    As in ``mmcv_ops.py``, it computes in at least float32, with copies of tensors in a lower precision.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
        # mmcv casts features and weight to the dtype of the offset, which is half precision under autocast.
        features, weight = features.to(offset.dtype), weight.to(offset.dtype)
        ctx.save_for_backward(features, offset, weight)
        images, _, height, width = features.shape
        output = features.new_empty(images, weight.size(0), height, width)
        exact = _exact(features, offset, weight)
        windows = _windows(exact[0])
        computed = torch.empty(output.shape)
        del windows, computed, exact
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        features, offset, weight = ctx.saved_tensors
        outputs = tuple(map(torch.empty_like, (features, offset, weight)))
        exact = _exact(*gradients, features, offset, weight)
        computed = tuple(map(torch.empty_like, exact[1:]))
        windows = _windows(exact[1])
        del windows, computed, exact
        return outputs


def _exact(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors)


def _windows(features: Tensor) -> Tensor:
    images, channels, height, width = features.shape
    return features.new_empty(images, channels * 9, height, width)


def _region_loss(roi_head: Any, settings: Any, features: Sequence[Tensor]) -> Tensor:
    """Return the loss of an RCNN head, or of all stages of a cascade, over the sampled regions."""
    several = isinstance(roi_head.bbox_head, nn.ModuleList)
    heads: Any = roi_head.bbox_head if several else [roi_head.bbox_head]
    extractors: Any = roi_head.bbox_roi_extractor if several else [roi_head.bbox_roi_extractor]
    samplers = [stage["sampler"] for stage in (settings if several else [settings])]
    images = len(features[0])
    losses = []
    for head, extractor, sampler in zip(heads, extractors, samplers, strict=True):
        regions = _extract(extractor, features, images * sampler["num"])
        scores, deltas = head(regions)
        del regions
        losses += [F.cross_entropy(scores, torch.empty(len(scores), dtype=torch.long)), torch.abs(deltas).sum()]
    if roi_head.with_mask:
        positives = int(images * samplers[0]["num"] * samplers[0]["pos_fraction"])
        masks = roi_head.mask_head(_extract(roi_head.mask_roi_extractor, features, positives))
        losses.append(F.binary_cross_entropy_with_logits(masks, torch.empty(masks.shape)))
    return torch.stack(losses).sum()


def _extract(extractor: Any, features: Sequence[Tensor], number: int) -> Tensor:
    """Pool features of regions, evenly from all levels, as :class:`~.layers.ExactRoIExtractor` does."""
    levels = _exact(*features[: extractor.num_inputs])
    size = extractor.roi_layers[0].output_size
    regions = torch.zeros(number, extractor.out_channels, *size)
    for level, layer in zip(levels, extractor.roi_layers, strict=True):
        share = math.ceil(number / len(levels))
        rois = torch.empty(share, 5)
        pooled: Tensor = roi_align(level, rois, size, layer.spatial_scale, layer.sampling_ratio, layer.aligned)
        if len(levels) == 1:
            return pooled.to(features[0].dtype)
        regions[torch.empty(share, dtype=torch.long)] = pooled
    return regions.to(features[0].dtype)
