"""Configs against MMDetection's own, over the structural space, and at work: loss, gradients and boxes."""

import inspect
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mmdet
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import get_torchvision_models
from mmengine.structures import InstanceData
from torch import Tensor, nn

from smnas_optuna.detector.config import SINGLE_LEVEL, model_config, weights_of
from smnas_optuna.detector.counting import build_on_meta
from smnas_optuna.parts.architecture import (
    FPN,
    RPN,
    Architecture,
    BackboneCode,
    ClassicBackbone,
    InputSize,
    parse_head,
    stride_of,
)
from smnas_optuna.recipe.settings import Detector
from smnas_optuna.search_space.structural import StructuralSpace
from tests.detector.counted_calls import CountedCalls
from tests.detector.test_backbone import backbone_codes

from mmcv.ops import batched_nms  # isort: skip  # needs the operators that our layers provide

# ------------------------------------------------------------------------------------ against MMDetection's own configs

SHIPPED = Path(mmdet.__file__).parent / ".mim" / "configs"
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


def shipped_model(file: str) -> dict[str, Any]:
    model: dict[str, Any] = Config.fromfile(SHIPPED / file).model.to_dict()
    return model


def classic_model(text: str) -> dict[str, Any]:
    architecture = Architecture.parse(f"1333x800 {text}")
    assert isinstance(architecture.backbone, ClassicBackbone)
    return model_config(architecture, classes=80, detector=Detector(), weights=weights_of(architecture.backbone))


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


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
    """The backbone does not put out what the FPN would not take in."""
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


@pytest.mark.parametrize(
    ("name", "depth"), [("ResNet18", 18), ("ResNet34", 34), ("ResNet50", 50), ("ResNet101", 101), ("ResNeXt50", 50)]
)
def test_torchvisions_weights_fit_the_backbones(name: str, depth: int) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnext{depth}_32x4d" if "X" in name else f"resnet{depth}")()
    ours = build_on_meta(classic_model(f"{name} {FASTER}"))
    expected = {layer: shape for layer, shape in shapes(theirs).items() if not layer.startswith("fc.")}
    assert shapes(ours.get_submodule("backbone")) == expected


@pytest.mark.parametrize("name", ClassicBackbone.NAMES)
def test_mmengine_knows_where_imagenet_weights_are(name: str) -> None:
    source, _, key = weights_of(ClassicBackbone(name)).partition("://")
    catalogue = Config.fromfile(Path(inspect.getfile(Config)).parents[1] / "hub" / "openmmlab.json")
    assert key in (get_torchvision_models() if source == "torchvision" else catalogue)


# ------------------------------------------------------------------------------------------------ the structural space

SPACE = StructuralSpace()
NECKS = [
    None,
    *(
        FPN(first, last_input, last_output)
        for first, last_input, last_output in itertools.product(range(1, 5), range(1, 5), range(1, 7))
        if first <= last_input <= last_output
    ),
]
PAIRS = [
    (None if rpn == "none" else RPN.parse(rpn), parse_head(head))
    for rpn, head in itertools.product(SPACE.rpns, SPACE.heads)
    if (rpn == "none") == (head == "RetinaNet")
]


def sample_of(neck_number: int) -> list[Architecture]:
    """Return one architecture per pair of RPN and head, among them every backbone and every size."""
    architectures = []
    for number, (rpn, head) in enumerate(PAIRS):
        backbone = ClassicBackbone(SPACE.backbones[(neck_number + number) % 7])
        size = InputSize.parse(SPACE.input_sizes[(neck_number + number) % 4])
        architectures.append(Architecture(size, backbone, NECKS[neck_number], rpn, head))
    return architectures


def test_the_sample_is_of_the_whole_space() -> None:
    sample = [architecture for number in range(len(NECKS)) for architecture in sample_of(number)]
    assert len(SPACE.backbones) * len(SPACE.input_sizes) * len(NECKS) * len(PAIRS) == SPACE.size == 10_332
    assert len({str(architecture) for architecture in sample}) == 369
    for architecture in sample:
        SPACE.params(architecture)  # raises if it is not in the space


def sizes(levels: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(level.size(2), level.size(3)) for level in levels]


@pytest.mark.parametrize("neck_number", range(len(NECKS)), ids=[str(neck) for neck in NECKS])
def test_the_space_builds_with_exactly_the_wanted_levels(neck_number: int, tmp_path: Path) -> None:
    neck = NECKS[neck_number]
    taken = neck.input_levels if neck else (SINGLE_LEVEL,)
    given = neck.output_levels if neck else (SINGLE_LEVEL,)
    for architecture in sample_of(neck_number):
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
    Config({"model": config}).dump(tmp_path / "config.py")
    assert Config.fromfile(tmp_path / "config.py").to_dict() == {"model": config}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(name=st.sampled_from(ClassicBackbone.NAMES), width=st.integers(2, 130))
def test_a_neck_expects_the_channels_that_a_backbone_of_any_width_has(name: str, width: int) -> None:
    model: Any = build_on_meta(small_config(f"{name}(w={width}) FPN(P1-P5,c=8) RetinaNet")).eval()
    levels = model.backbone(torch.empty(1, 3, 64, 64, device="meta"))
    assert [level.size(1) for level in levels] == model.neck.in_channels


# ------------------------------------------------------------------------------------------------------------- at work

WIDTH, HEIGHT = 256, 192
# The detectors of SM-NAS's Table 2, backbones of Table 6 with the bases that reproduce its figures.
FOUND = {
    "E0": "512x512 basicblock_64_1-21-21-12 FPN(P2-P5,c=128) RPN 2FC",
    "E1": "800x600 basicblock_72_111-2111-2-111112 FPN(P2-P5,c=256) RPN 2FC",
    "E2": "800x600 basicblock_56_12-11111-211-1112 FPN(P1-P5,c=128) RPN Cascade(n=3)",
    "E3": "800x600 bottleneck_56_211-111111111-2111111-11112111 FPN(P1-P5,c=128) RPN Cascade(n=3)",
    "E4": "800x600 Xbottleneck_56_21-21-111111111111111-2111111 FPN(P1-P5,c=256) GA-RPN Cascade(n=3)",
    "E5": "1333x800 Xbottleneck_56_21-21-11111111111111-21111111 FPN(P1-P5,c=256) GA-RPN Cascade(n=3)",
}
SMALL = Detector(proposals=20, roi_samples=16, fc_channels=16, retina_convs=1, anchor_scale=4)
NORMS: dict[str, dict[str, Any]] = {
    "BN": {},
    "BN and WS": {"weight_standardization": True},
    "GN": {"norm": "GN"},
    "GN and WS": {"norm": "GN", "weight_standardization": True},
}
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


def small_config(text: str, weights: str | None = None, **changes: Any) -> dict[str, Any]:
    detector = SMALL.model_copy(update=changes)
    return model_config(Architecture.parse(f"{WIDTH}x{HEIGHT} {text}"), classes=3, detector=detector, weights=weights)


def build(config: dict[str, Any]) -> Any:
    """Build a detector with the weights that training would start from."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(ConfigDict(config))
        model.init_weights()
    return model


def batch(model: Any, images: int, training: bool, shrink: int = 1) -> dict[str, Any]:
    """Return images with objects of all sizes, as a data loader and the detector's preprocessor make them.

    The sides are those above, divided by ``shrink``.
    """
    samples = []
    height, width = HEIGHT // shrink, WIDTH // shrink
    for _ in range(images):
        boxes = torch.tensor([[8, 8, 24, 28], [60, 20, 100, 70], [20, 60, 120, 160], [90, 5, 250, 185]]).float()
        shape = {"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1.0, 1.0)}
        sample = DetDataSample(metainfo=shape)
        sample.gt_instances = InstanceData(bboxes=boxes / shrink, labels=torch.tensor([0, 1, 2, 1]))
        samples.append(sample)
    inputs = [torch.randint(0, 256, (3, height, width), dtype=torch.uint8) for _ in range(images)]
    data: dict[str, Any] = model.data_preprocessor({"inputs": inputs, "data_samples": samples}, training)
    return data


def backward(model: Any, shrink: int = 1) -> dict[str, float]:
    """Return the losses of one training step that has left its gradients in the model."""
    model.train()
    losses = model(**batch(model, images=2, training=True, shrink=shrink), mode="loss")
    total, logged = model.parse_losses(losses)
    total.backward()
    return {name: value.item() for name, value in logged.items()}


def combinations() -> list[Any]:
    """Every neck with every RPN and head; backbones and norms take turns, so that each meets each."""
    cases = []
    for (row, neck), (column, head) in itertools.product(enumerate(AT_WORK_NECKS), enumerate(AT_WORK_HEADS)):
        for shift in range(2):
            backbone = BACKBONES[(row + column + shift) % 3]
            norm = ["BN", "BN and WS", "GN", "GN and WS"][(row + column // 3 + 2 * shift) % 4]
            text = " ".join(part for part in (backbone, neck, head) if part)
            cases.append(pytest.param(text, NORMS[norm], id=f"{text} {norm}"))
    return cases + [pytest.param(text, NORMS[norm], id=f"{text} {norm}") for text, norm in CODES]


@pytest.mark.parametrize(("text", "norm"), combinations())
def test_every_combination_learns_and_detects(text: str, norm: dict[str, Any]) -> None:
    check_that_it_learns_and_detects(text, norm)


@pytest.mark.parametrize("text", FOUND.values(), ids=FOUND)
def test_the_detectors_that_the_paper_found_learn_and_detect_with_the_layers_that_found_them(text: str) -> None:
    check_that_it_learns_and_detects(text.partition(" ")[2], NORMS["GN and WS"], shrink=2)


def check_that_it_learns_and_detects(text: str, norm: dict[str, Any], shrink: int = 1) -> None:
    model = build(small_config(text, **norm))
    for layer in model.modules():
        # A residual branch that starts as zero passes no gradient on before the first step.
        if isinstance(layer, nn.BatchNorm2d | nn.GroupNorm) and not layer.weight.any():
            nn.init.ones_(layer.weight)
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0  # one batch is all that its statistics are of
    losses = backward(model, shrink)
    assert all(math.isfinite(value) for value in losses.values()), losses
    head = Architecture.parse(f"64x64 {text}").head
    assert sum("loss_cls" in name for name in losses) == getattr(head, "stages", 1)
    without = [name for name, one in model.named_parameters() if one.grad is None or not one.grad.any()]
    assert without == []
    assert all(one.grad.isfinite().all() for one in model.parameters())

    model.eval()
    if "GA-RPN" in text:
        nn.init.zeros_(model.rpn_head.conv_loc.bias)  # so that some locations are likely enough
    if "RetinaNet" in text:
        nn.init.zeros_(model.bbox_head.retina_cls.bias)  # it starts out sure that there is no object
    with torch.inference_mode():
        (result,) = model(**batch(model, images=1, training=False, shrink=shrink), mode="predict")
    found = result.pred_instances
    assert 0 < len(found) <= SMALL.max_detections
    limit = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]) / shrink
    assert ((found.bboxes >= 0) & (found.bboxes <= limit)).all()
    assert ((found.scores > 0) & (found.scores <= 1)).all()
    assert set(found.labels.tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("text", ["GA-RPN 2FC", "GA-RPN Cascade(n=2)", "FPN(P1-P5,c=16) GA-RPN 2FC"])
def test_guided_anchoring_that_finds_nothing_likely_detects_nothing(text: str) -> None:
    model = build(small_config(f"ResNet18(w=16) {text}")).eval()
    nn.init.constant_(model.rpn_head.conv_loc.bias, -20)
    with torch.inference_mode():
        (result,) = model(**batch(model, images=1, training=False), mode="predict")
    assert result.pred_instances.bboxes.shape == (0, 4)
    assert result.pred_instances.scores.shape == result.pred_instances.labels.shape == (0,)


@pytest.mark.parametrize("text", ["GA-RPN 2FC", "FPN(P1-P5,c=16) GA-RPN 2FC"])
def test_guided_anchoring_learns_the_shapes_of_small_and_large_objects(text: str) -> None:
    head = build(small_config(f"ResNet18(w=16) {text}")).rpn_head
    boxes = torch.tensor([[8, 8, 20, 20], [40, 8, 58, 26], [90, 70, 150, 130], [4, 2, 252, 190]]).float()
    strides = [stride for stride, _ in head.square_anchor_generator.strides]
    shapes = [(HEIGHT // stride, WIDTH // stride) for stride in strides]
    metas = [{"img_shape": (HEIGHT, WIDTH), "pad_shape": (HEIGHT, WIDTH)}]
    approximate, inside = head.get_sampled_approxs(shapes, metas, device="cpu")
    squares = [head.square_anchor_generator.grid_priors(shapes, device="cpu")]
    objects = [InstanceData(bboxes=boxes, labels=torch.zeros(4, dtype=torch.long))]
    _, targets, weights, _ = head.ga_shape_targets(approximate, inside, squares, objects, metas)
    taught = torch.cat([target[weight.any(-1)] for target, weight in zip(targets, weights, strict=True)])
    assert {tuple(box) for box in taught.tolist()} == {tuple(box) for box in boxes.tolist()}


def test_one_level_has_anchors_of_all_the_sizes_that_a_pyramid_has() -> None:
    def sides(text: str) -> set[float]:
        model = small_config(f"ResNet18 {text}", anchor_scale=8)
        head = model.get("rpn_head") or model["bbox_head"]
        anchors = TASK_UTILS.build(head["anchor_generator"]).base_anchors
        widths = torch.cat([(one[:, 2] - one[:, 0]) * (one[:, 3] - one[:, 1]) for one in anchors]).sqrt()
        return {round(float(side), 2) for side in widths}

    assert sides("RPN 2FC") == sides("FPN(P1-P5,c=16) RPN 2FC") == sides("RetinaNet") == {32, 64, 128, 256, 512}
    assert sides("RetinaNet") < sides("FPN(P2-P6,c=16) RetinaNet")
    assert sides("FPN(P3-P3,c=16) RPN 2FC") == {128}  # a level more has to mean a size more, as the order says


@pytest.mark.parametrize("levels", ["P1-P4", "P2-P4", "P3-P4", "P1-P2", "P1-P3:P1-P6", "P2-P3:P2-P5"])
def test_regions_are_cut_from_the_level_that_equation_1_of_fpn_says(levels: str) -> None:
    model: Any = build_on_meta(small_config(f"ResNet18 FPN({levels},c=16) RPN 2FC"))
    extractor = model.roi_head.bbox_roi_extractor
    strides = extractor.featmap_strides
    sides = torch.tensor([8, 32, 100, 111, 113, 180, 223, 225, 400, 447, 449, 900]).float()
    rois = torch.stack([torch.zeros(12), torch.zeros(12), torch.zeros(12), sides, sides], dim=1)
    ideal = [2 ** math.floor(4 + math.log2(side / 224)) for side in sides.tolist()]  # of 224 pixels: stride 16
    expected = [min(max(stride, strides[0]), strides[-1]) for stride in ideal]
    assert [strides[level] for level in extractor.map_roi_levels(rois, len(strides))] == expected


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


@pytest.mark.parametrize(
    ("whole", "truncated", "frozen"),
    [
        ("ResNet18(w=16)", "FPN(P1-P4,c=16) RPN 2FC", {"conv1", "bn1", "layer1"}),
        ("ResNeXt50(w=16)", "FPN(P2-P3:P2-P5,c=16) RetinaNet", {"conv1", "bn1", "layer1"}),
        ("ResNet18(w=16)", "RPN 2FC", {"conv1", "bn1", "layer1"}),
        ("MobileNetV2(w=16)", "FPN(P1-P2,c=16) RPN 2FC", {"conv1", "layer1"}),
    ],
)
def test_given_weights_are_loaded_and_the_early_layers_and_statistics_kept(
    whole: str, truncated: str, frozen: set[str], tmp_path: Path
) -> None:
    source = build(small_config(f"{whole} FPN(P1-P4,c=16) RPN 2FC")).backbone
    for tensor in source.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 0.5)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = build(small_config(f"{whole} {truncated}", weights=str(tmp_path / "weights.pth")))
    loaded = model.backbone.state_dict()
    assert loaded.keys() <= source.state_dict().keys()
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in loaded.items())
    backward(model)
    untrained = {name.split(".")[0] for name, one in model.backbone.named_parameters() if one.grad is None}
    assert untrained == frozen
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in model.backbone.state_dict().items())


def test_from_scratch_nothing_is_frozen_and_statistics_are_learnt() -> None:
    model = build(small_config("ResNet18(w=16) FPN(P1-P4,c=16) RPN 2FC"))
    before = {name: tensor.clone() for name, tensor in model.backbone.named_buffers()}
    backward(model)
    assert all(one.requires_grad for one in model.parameters())
    assert not any(torch.equal(tensor, before[name]) for name, tensor in model.backbone.named_buffers())


def test_a_shorter_cascade_is_the_beginning_of_a_longer_one() -> None:
    def stages(head: str) -> list[tuple[Any, ...]]:
        config = small_config(f"ResNet18 FPN(P1-P5,c=16) RPN {head}")
        heads, settings = config["roi_head"]["bbox_head"], config["train_cfg"]["rcnn"]
        weights = config["roi_head"]["stage_loss_weights"]
        overlaps = [stage["assigner"]["pos_iou_thr"] for stage in settings]
        spreads = [stage["bbox_coder"]["target_stds"] for stage in heads]
        assert config["roi_head"]["num_stages"] == len(heads)
        return list(zip(overlaps, weights, spreads, heads, settings, strict=True))

    longest = stages("Cascade(n=4)")
    assert [stage[0] for stage in longest] == [0.5, 0.6, 0.7, 0.75]
    assert [stage[1] for stage in longest] == [1, 0.5, 0.25, 0.125]
    assert [stage[2][0] for stage in longest] == [0.1, 0.05, 0.033, 0.025]
    assert stages("Cascade(n=3)") == longest[:3]
    assert stages("Cascade(n=2)") == longest[:2]


# --------------------------------------------------------------------------------------------------- searched backbones


@pytest.mark.parametrize("text", FOUND.values(), ids=FOUND)
def test_the_detectors_that_the_paper_found_build_as_they_are_printed(text: str) -> None:
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


@settings(max_examples=20, deadline=None, derandomize=True)
@given(code=backbone_codes(st.integers(2, 64).map(lambda half: 2 * half)), neck_number=st.integers(0, len(NECKS) - 1))
def test_neck_and_heads_expect_the_channels_that_a_code_has(code: BackboneCode, neck_number: int) -> None:
    neck = NECKS[neck_number]
    architecture = Architecture(InputSize(64, 64), code, neck, RPN(), parse_head("2FC"))
    model: Any = build_on_meta(model_config(architecture, classes=3, detector=SMALL)).eval()
    levels = model.backbone(torch.empty(1, 3, 64, 64, device="meta"))
    if neck:
        assert [level.size(1) for level in levels] == model.neck.in_channels
    else:
        assert [level.size(1) for level in levels] == [model.rpn_head.in_channels]
    assert len(model.backbone.res_layers) == (neck.last_input if neck else SINGLE_LEVEL)


def test_a_searched_backbone_starts_from_given_weights_and_keeps_of_them_what_a_classic_one_keeps(
    tmp_path: Path,
) -> None:
    text = "bottleneck_8_1-21-21-12 FPN(P1-P4,c=16) RPN 2FC"
    source = build(small_config(text)).backbone
    for tensor in source.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 0.5)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    backbone = build(small_config(text, weights=str(tmp_path / "weights.pth"))).backbone.train()
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in backbone.state_dict().items())
    kept = {name.partition(".")[0] for name, one in backbone.named_parameters() if not one.requires_grad}
    assert kept == {*backbone.stem_layers, backbone.res_layers[0]}
    assert not [layer for layer in backbone.modules() if isinstance(layer, torch.nn.BatchNorm2d) and layer.training]


@pytest.mark.parametrize(
    ("text", "channels"),
    [
        ("ResNet50 FPN(P2-P6,c=48)", 48),
        ("ResNet50 FPN(P2-P6,c=512)", 512),
        ("ResNet50", 256),
        ("MBblock_16_1-2-2-2", 64),
    ],
)
def test_retinanets_branches_are_as_wide_as_the_neck_and_256_at_most_without_one(text: str, channels: int) -> None:
    assert small_config(f"{text} RetinaNet")["bbox_head"]["feat_channels"] == channels


def test_guided_anchorings_boxes_of_all_classes_go_through_one_suppression() -> None:
    model = model_config(
        Architecture.parse("64x48 ResNet18 FPN(P2-P5,c=16) GA-RPN 2FC"), classes=80, detector=Detector()
    )
    settings = model["test_cfg"]["rcnn"]["nms"]
    torch.manual_seed(0)
    # As many as there are at the most: 300 proposals of 80 classes.
    corners = torch.rand(24_000, 2) * 1000
    boxes = torch.cat([corners, corners + 20 + torch.rand(24_000, 2) * 200], dim=1)
    scores, classes = torch.rand(24_000), torch.arange(24_000) % 80
    with CountedCalls() as counted:
        _, kept = batched_nms(boxes, scores, classes, settings)
    assert counted.calls["torchvision.nms"] == 1
    with CountedCalls() as counted:
        _, class_by_class = batched_nms(boxes, scores, classes, settings | {"split_thr": 10_000})
    assert counted.calls["torchvision.nms"] == 80
    # Boxes of the same score may come in another order.
    assert sorted(kept.tolist()) == sorted(class_by_class.tolist())
