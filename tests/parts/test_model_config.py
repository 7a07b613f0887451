"""Configs compared with MMDetection's own, over the structural space, and in use: loss, gradients and boxes."""

import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.config import Config
from torch import nn

from smnas_optuna.detector.counting import build_on_meta
from smnas_optuna.parts.architecture import Architecture, InputSize
from smnas_optuna.parts.backbones.backbone import BACKBONES as FAMILIES
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.heads.head import HEADS
from smnas_optuna.parts.levels import SINGLE_LEVEL, stride_of
from smnas_optuna.parts.model_config import model_config
from smnas_optuna.parts.rpns.rpn import RPNS
from smnas_optuna.search_space.structural import StructuralSpace
from tests.parts.detectors import (
    FOUND,
    NECKS,
    NORMS,
    check_that_it_learns_and_detects,
    classic_model,
    shapes,
    shipped_model,
    sizes,
    small_config,
)

FASTER = "FPN(P1-P5,c=256) RPN 2FC"
GUIDED = "FPN(P1-P5,c=256) GA-RPN 2FC"
CASCADE = "FPN(P1-P5,c=256) RPN Cascade(n=3)"
RETINA = "FPN(P2-P6,c=256) RetinaNet"
CLASSICS = [
    (f"ResNet50 {FASTER}", "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"),
    (f"ResNet101 {FASTER}", "faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py"),
    (f"ResNeXt101 {FASTER}", "faster_rcnn/faster-rcnn_x101-32x4d_fpn_1x_coco.py"),
    (f"ResNet50 {CASCADE}", "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py"),
    (f"ResNeXt101 {CASCADE}", "cascade_rcnn/cascade-rcnn_x101-32x4d_fpn_1x_coco.py"),
    (f"ResNet18 {RETINA}", "retinanet/retinanet_r18_fpn_1x_coco.py"),
    (f"ResNet50 {RETINA}", "retinanet/retinanet_r50_fpn_1x_coco.py"),
    (f"ResNet50 {GUIDED}", "guided_anchoring/ga-faster-rcnn_r50_fpn_1x_coco.py"),
    (f"ResNet50 {GUIDED}", "guided_anchoring/ga-faster-rcnn_r50-caffe_fpn_1x_coco.py"),
]
ABSENT = "absent"


def values_of(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting of a config under its dotted path, with those that it leaves to a class's default."""
    if isinstance(config, dict):
        kind = (MODELS.get(config["type"]) or TASK_UTILS.get(config["type"])) if "type" in config else None
        for key, value in (defaults(kind) | config if kind else config).items():
            yield from values_of(value, f"{path}.{key}" if path else key)
    elif isinstance(config, list | tuple) and any(isinstance(item, dict) for item in config):
        for index, item in enumerate(config):
            yield from values_of(item, f"{path}.{index}")
    else:
        yield path, list(config) if isinstance(config, list | tuple) else config


def defaults(kind: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__[:-1]):
        if "__init__" in vars(base):
            found |= {
                name: parameter.default
                for name, parameter in inspect.signature(base).parameters.items()
                if parameter.default is not parameter.empty
            }
    return found


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    mine, others = dict(values_of(ours)), dict(values_of(theirs))
    pairs = {path: (mine.get(path, ABSENT), others.get(path, ABSENT)) for path in {**mine, **others}}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}


@pytest.mark.parametrize(("text", "file"), CLASSICS, ids=[file for _, file in CLASSICS])
def test_classic_detectors_have_the_tensors_that_mmdetection_ships(text: str, file: str) -> None:
    ours, theirs = build_on_meta(classic_model(text)), build_on_meta(shipped_model(file))
    assert shapes(ours) == shapes(theirs)
    assert sum(one.numel() for one in ours.parameters()) == sum(one.numel() for one in theirs.parameters())


# The stem's width said outright; MMDetection's None means just that.
STEM = {"backbone.stem_channels": (64, None)}

# Proposes what GARPNHead does, and nothing at all where that raises.
LENIENT = {"rpn_head.type": ("LenientGARPNHead", "GARPNHead")}

# One RPN in the whole search, that of Faster R-CNN: the number of stages shall be the only difference to Cascade R-CNN.
ONE_RPN = {
    "rpn_head.loss_bbox.type": ("L1Loss", "SmoothL1Loss"),
    "rpn_head.loss_bbox.beta": (ABSENT, 1 / 9),
    "train_cfg.rpn.allowed_border": (-1, 0),
}


def narrow_inputs(channels: list[int]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ since the backbone outputs only the input levels of the FPN."""
    return {
        "backbone.out_indices": ([1, 2, 3], [0, 1, 2, 3]),
        "neck.in_channels": (channels[1:], channels),
        "neck.start_level": (0, 1),
    }


# The same in float32.
EXACT_RPN = {"rpn_head.type": ("ExactRPNHead", "RPNHead")}
EXACT = {"roi_head.bbox_roi_extractor.type": ("ExactRoIExtractor", "SingleRoIExtractor")}

# 300 proposals of 80 classes go through one non-maximum suppression instead of 80.
ONE_SUPPRESSION = {"test_cfg.rcnn.nms.split_thr": (30_000, ABSENT)}

# The original networks in Caffe's layout; torchvision's weights have strides and colours otherwise.
CAFFE = {
    "data_preprocessor.mean": ([123.675, 116.28, 103.53], [103.53, 116.28, 123.675]),
    "data_preprocessor.std": ([58.395, 57.12, 57.375], [1.0, 1.0, 1.0]),
    "data_preprocessor.bgr_to_rgb": (True, False),
    "backbone.norm_cfg.requires_grad": (True, False),
    "backbone.style": ("pytorch", "caffe"),
    "backbone.init_cfg.checkpoint": ("torchvision://resnet50", "open-mmlab://detectron2/resnet50_caffe"),
}


@pytest.mark.parametrize(
    ("text", "file", "deliberate"),
    [
        (*CLASSICS[0], STEM | EXACT | EXACT_RPN),
        (*CLASSICS[1], STEM | EXACT | EXACT_RPN),
        (*CLASSICS[2], STEM | EXACT | EXACT_RPN),
        (*CLASSICS[3], STEM | EXACT | EXACT_RPN | ONE_RPN),
        (*CLASSICS[4], STEM | EXACT | EXACT_RPN | ONE_RPN),
        (*CLASSICS[5], STEM | narrow_inputs([64, 128, 256, 512])),
        (*CLASSICS[6], STEM | narrow_inputs([256, 512, 1024, 2048])),
        (*CLASSICS[7], STEM | EXACT | LENIENT | ONE_SUPPRESSION),
        (*CLASSICS[8], STEM | EXACT | LENIENT | CAFFE | ONE_SUPPRESSION),
    ],
    ids=[file for _, file in CLASSICS],
)
def test_classic_detectors_have_the_settings_that_mmdetection_ships(
    text: str, file: str, deliberate: dict[str, tuple[Any, Any]]
) -> None:
    assert differences(classic_model(text), shipped_model(file)) == deliberate


def test_without_a_neck_proposals_are_made_as_in_mmdetections_c4_models() -> None:
    ours, theirs = classic_model("ResNet50 RPN 2FC"), shipped_model("_base_/models/faster-rcnn_r50-caffe-c4.py")
    different = differences(ours, theirs)
    # C4's RCNN head is ResNet's last stage; ours is the 2FC head of the structural space.
    assert {path.split(".")[0] for path in different if path not in STEM | CAFFE | EXACT_RPN} == {"roi_head"}
    extractors = [one["roi_head"]["bbox_roi_extractor"] for one in (ours, theirs)]
    assert [one["featmap_strides"] for one in extractors] == [[16], [16]]


SPACE = StructuralSpace()
PAIRS = [
    (None if rpn == "none" else RPNS.parse(rpn), HEADS.parse(head))
    for rpn, head in itertools.product(SPACE.rpns, SPACE.heads)
    if (rpn == "none") == (head == "RetinaNet")
]


# A neck is built with one pair of RPN and head, the next neck with the next pair; in `make test-long` with all.
SHARES = [pytest.param(9, id="one"), pytest.param(1, id="all", marks=pytest.mark.long)]


def sample_of(neck_number: int, share: int = 1) -> list[Architecture]:
    """Return an architecture for one in ``share`` pairs of RPN and head, in turn with every backbone and every size."""
    architectures = []
    for number, (rpn, head) in enumerate(PAIRS):
        backbone = FAMILIES.parse(SPACE.backbones[(neck_number + number) % 7])
        size = InputSize.parse(SPACE.input_sizes[(neck_number + number) % 4])
        architectures.append(Architecture(size, backbone, NECKS[neck_number], rpn, head))
    return architectures[neck_number % share :: share]


@pytest.mark.parametrize(("share", "number"), [(9, 41), (1, 369)])
def test_the_sample_is_of_the_whole_space(share: int, number: int) -> None:
    sample = [architecture for neck in range(len(NECKS)) for architecture in sample_of(neck, share)]
    assert len(SPACE.backbones) * len(SPACE.input_sizes) * len(NECKS) * len(PAIRS) == SPACE.size == 10_332
    assert len({str(architecture) for architecture in sample}) == number
    assert {(one.rpn, one.head) for one in sample} == set(PAIRS)
    assert {str(one.backbone) for one in sample} == set(SPACE.backbones)
    assert {str(one.input_size) for one in sample} == set(SPACE.input_sizes)
    for architecture in sample:
        SPACE.params(architecture)  # raises if it is not in the space


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("neck_number", range(len(NECKS)), ids=[str(neck) for neck in NECKS])
def test_every_neck_of_the_space_builds_with_exactly_its_levels(neck_number: int, share: int, tmp_path: Path) -> None:
    neck = NECKS[neck_number]
    taken = neck.input_levels if neck else (SINGLE_LEVEL,)
    given = neck.output_levels if neck else (SINGLE_LEVEL,)
    for architecture in sample_of(neck_number, share):
        config = model_config(architecture, classes=80, detector=Detector())
        model: Any = build_on_meta(config).eval()
        levels = model.backbone(torch.empty(1, 3, 512, 768, device="meta"))
        features = model.neck(levels) if neck else levels
        assert sizes(levels) == [(512 // stride_of(level), 768 // stride_of(level)) for level in taken]
        assert sizes(features) == [(512 // stride_of(level), 768 // stride_of(level)) for level in given]
        assert {feature.size(1) for feature in features} == {neck.channels if neck else levels[0].size(1)}
        head = model.rpn_head if architecture.rpn else model.bbox_head
        anchors = head.square_anchor_generator if str(architecture.rpn) == "GA-RPN" else head.prior_generator
        assert anchors.strides == [(stride_of(level), stride_of(level)) for level in given]
        if architecture.rpn:
            extractors = model.roi_head.bbox_roi_extractor
            for extractor in extractors if isinstance(extractors, nn.ModuleList) else [extractors]:
                assert extractor.featmap_strides == [stride_of(level) for level in taken]
    Config({"model": config}, format_python_code=False).dump(tmp_path / "config.py")
    assert Config.fromfile(tmp_path / "config.py").to_dict() == {"model": config}


@pytest.mark.parametrize("text", FOUND.values(), ids=FOUND)
def test_the_papers_detectors_build_from_their_printed_texts(text: str) -> None:
    architecture = Architecture.parse(text)
    neck = architecture.neck
    assert neck is not None
    model: Any = build_on_meta(model_config(architecture, classes=80, detector=Detector())).eval()
    levels = model.backbone(torch.empty(1, 3, 512, 768, device="meta"))
    features = model.neck(levels)
    assert sizes(levels) == [(512 // stride_of(level), 768 // stride_of(level)) for level in neck.input_levels]
    assert sizes(features) == [(512 // stride_of(level), 768 // stride_of(level)) for level in neck.output_levels]
    assert {feature.size(1) for feature in features} == {neck.channels}
    assert len(model.backbone.res_layers) == 4


BACKBONES = ["ResNet18(w=16)", "MobileNetV2(w=16)", "ResNeXt50(w=16)"]

# One of each kind of block, each with another RPN, head and normalisation.
CODES = [
    ("basicblock_16_1-21-2-12 FPN(P2-P5,c=16) RPN 2FC", "BN"),
    ("bottleneck_8_1-21-2-12 FPN(P1-P5,c=16) GA-RPN 2FC", "GN"),
    ("Xbottleneck_8_12-1-2-12 RPN Cascade(n=2)", "GN and WS"),
    ("MBblock_16_11-21-2-12 FPN(P2-P6,c=16) RetinaNet", "BN and WS"),
]
AT_WORK_NECKS = ["", "FPN(P1-P5,c=16)", "FPN(P2-P3:P2-P5,c=16)", "FPN(P3-P3,c=16)", "FPN(P4-P6,c=16)"]
AT_WORK_HEADS = ["RetinaNet", *(f"{rpn} {head}" for rpn in ("RPN", "GA-RPN") for head in SPACE.heads[1:])]


def combinations() -> list[Any]:
    """Every neck with every RPN and head; backbones and norms take turns, and in a second round each meets each."""
    cases = []
    for (row, neck), (column, head) in itertools.product(enumerate(AT_WORK_NECKS), enumerate(AT_WORK_HEADS)):
        for shift in range(2):
            backbone = BACKBONES[(row + column + shift) % 3]
            norm = ["BN", "BN and WS", "GN", "GN and WS"][(row + column // 3 + 2 * shift) % 4]
            text = " ".join(part for part in (backbone, neck, head) if part)
            marks = [pytest.mark.long] if shift else []
            cases.append(pytest.param(text, NORMS[norm], id=f"{text} {norm}", marks=marks))
    return cases + [pytest.param(text, NORMS[norm], id=f"{text} {norm}") for text, norm in CODES]


@pytest.mark.parametrize(("text", "norm"), combinations())
def test_every_combination_learns_and_detects(text: str, norm: dict[str, Any]) -> None:
    check_that_it_learns_and_detects(text, norm)


@pytest.mark.parametrize("text", FOUND.values(), ids=FOUND)
def test_the_papers_detectors_train_and_detect_with_the_layers_of_its_search(text: str) -> None:
    check_that_it_learns_and_detects(text.partition(" ")[2], NORMS["GN and WS"], shrink=2)


RETINA_BRANCHES = {"bbox_head.cls_convs", "bbox_head.reg_convs"}


@pytest.mark.parametrize("head", ["RPN 2FC", "RetinaNet"])
@pytest.mark.parametrize(
    ("norm", "parts"),
    [
        ("BN", set()),
        ("GN", set()),
        ("BN and WS", {"backbone"}),
        ("GN and WS", {"backbone", "neck", "rpn_head.rpn_conv"} | RETINA_BRANCHES),
    ],
)
def test_standardised_weights_are_those_that_a_normalisation_follows(norm: str, parts: set[str], head: str) -> None:
    found: dict[str, set[str]] = {"Conv2d": set(), "ConvWS2d": set()}
    model = build_on_meta(small_config(f"MobileNetV2(w=16) FPN(P2-P6,c=16) {head}", **NORMS[norm]))
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            first, second, *_ = name.split(".")
            found[type(layer).__name__].add(f"{first}.{second}" if "head" in first else first)
    everywhere = {"backbone", "neck", "rpn_head.rpn_conv", "rpn_head.rpn_cls", "rpn_head.rpn_reg"}
    if head == "RetinaNet":
        everywhere = {"backbone", "neck", "bbox_head.retina_cls", "bbox_head.retina_reg"} | RETINA_BRANCHES
    assert found == {"Conv2d": everywhere - parts, "ConvWS2d": everywhere & parts}
