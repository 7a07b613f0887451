"""Counted costs against an independent count, layer by layer, of a detector that really runs."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from smnas_optuna.detector.counting import build_on_meta, count_costs
from smnas_optuna.parts.architecture import Architecture, InputSize
from smnas_optuna.parts.detector import Detector
from smnas_optuna.parts.heads.rcnn import RCNNHead
from smnas_optuna.parts.heads.retinanet import RetinaNetHead
from smnas_optuna.parts.model_config import model_config
from smnas_optuna.parts.necks.fpn import FPN
from smnas_optuna.parts.rpns.guided_anchoring import GuidedAnchoringRPN
from smnas_optuna.parts.rpns.rpn import RPN
from smnas_optuna.search_space.structural import order
from tests.parts.texts import CLASSIC_BACKBONES

SMALL = Detector(proposals=12, fc_channels=24, head_convs=2)
SMALL_GN = SMALL.model_copy(update={"norm": "GN", "weight_standardization": True})


def config_of(text: str, detector: Detector = SMALL, classes: int = 5) -> dict[str, Any]:
    return model_config(Architecture.parse(text), classes=classes, detector=detector)


def multiply_adds(model: nn.Module, run: Callable[[], object]) -> Counter[str]:
    """Count by part of the detector, such as `backbone`: each weight is used once per position of its output."""
    counts: Counter[str] = Counter()

    def watch(name: str, layer: nn.Module) -> None:
        def add(layer: nn.Module, inputs: object, output: Tensor) -> None:
            assert isinstance(layer.weight, Tensor)
            channel = 1 if output.dim() == 4 else -1
            counts[name.split(".")[0]] += layer.weight.numel() * output.numel() // output.size(channel)

        layer.register_forward_hook(add)

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) or type(layer).__name__ == "DeformConv2d":
            watch(name, layer)
    with torch.no_grad():
        run()
    return counts


def detect(model: Any, size: InputSize, proposals: int) -> None:
    """Run a detector in testing on an image whose RPN has found ``proposals`` boxes."""
    features = model.extract_feat(torch.randn(1, 3, size.height, size.width))
    if not hasattr(model, "rpn_head"):
        model.bbox_head(features)
        return
    model.rpn_head(features)
    corners = torch.rand(proposals, 2) * torch.tensor([size.width, size.height]) / 2
    boxes = torch.cat([corners, 2 * corners + 4], dim=1)
    found = InstanceData(bboxes=boxes, scores=torch.ones(proposals), labels=torch.zeros(proposals, dtype=torch.long))
    shape = (size.height, size.width)
    sample = DetDataSample(metainfo={"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0)})
    model.roi_head.predict(features, [found], [sample])


@pytest.mark.parametrize("detector", [SMALL, SMALL_GN], ids=["BN", "GN"])
@pytest.mark.parametrize(
    ("text", "proposals"),
    [
        ("96x64 ResNet18(w=16) FPN(P1-P5,c=16) RPN 2FC", 12),
        ("64x96 ResNet50(w=16) FPN(P2-P3:P2-P6,c=24) RetinaNet", 0),
        ("96x64 ResNeXt50(w=16) FPN(P4-P6,c=16) RPN Cascade(n=4)", 12),
        ("96x64 ResNeXt101(w=16) FPN(P3-P3,c=16) GA-RPN Cascade(n=2)", 6),
        ("128x96 MobileNetV2(w=16) FPN(P1-P6,c=16) GA-RPN 2FC", 6),
        ("96x64 MobileNetV2(w=24) FPN(P2-P5,c=18) GA-RPN Cascade(n=3)", 6),
        ("96x64 MobileNetV2 RetinaNet", 0),
        ("96x64 MobileNetV2(w=16) RPN 2FC", 12),
        ("96x96 ResNet34(w=16) GA-RPN Cascade(n=3)", 6),
        ("32x32 ResNet18(w=16) FPN(P1-P6,c=16) GA-RPN 2FC", 6),
    ],
)
def test_the_count_equals_an_independent_one_of_the_running_detector(
    text: str, proposals: int, detector: Detector
) -> None:
    torch.manual_seed(0)
    size = InputSize.parse(text.split()[0])
    config = config_of(text, detector)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(ConfigDict(config)).eval()
    flops, params = count_costs(config, size)
    assert flops == multiply_adds(model, lambda: detect(model, size, proposals)).total()
    assert params == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("backbone", "size", "giga"),
    [
        ("ResNet18", "512x512", 9.47),
        ("ResNet34", "800x608", 35.51),
        ("ResNet101", "800x608", 75.61),
        ("ResNeXt101", "800x608", 77.24),
        ("ResNeXt101", "1344x800", 170.7),
    ],
)
def test_backbones_cost_what_table_7_of_the_paper_implies(backbone: str, size: str, giga: float) -> None:
    """Its own figures lie 1 % above these, which are the convolutions alone."""
    text = f"{size} {backbone} FPN(P1-P4,c=256) RetinaNet"
    config = config_of(text, Detector(), classes=80)
    model: Any = build_on_meta(config)
    box = InputSize.parse(size)
    image = torch.empty(1, 3, box.height, box.width, device="meta")
    counts = multiply_adds(model, lambda: model.bbox_head(model.extract_feat(image)))
    assert counts["backbone"] / 1e9 == pytest.approx(giga, abs=0.051 if giga > 100 else 0.0051)
    assert count_costs(config, box)[0] == counts.total()


@pytest.mark.parametrize(
    ("text", "params"),
    [
        # The published counts less the 1000-class layer, and less MobileNetV2's last convolution.
        ("512x512 ResNet18 FPN(P4-P4,c=1) RetinaNet", 11_689_512 - 513_000),
        ("512x512 ResNet50 FPN(P4-P4,c=1) RetinaNet", 25_557_032 - 2_049_000),
        ("512x512 ResNet101 FPN(P4-P4,c=1) RetinaNet", 44_549_160 - 2_049_000),
        ("512x512 ResNeXt50 FPN(P4-P4,c=1) RetinaNet", 25_028_904 - 2_049_000),
        ("512x512 MobileNetV2 FPN(P4-P4,c=1) RetinaNet", 3_504_872 - 1_281_000 - 320 * 1280 - 2 * 1280),
    ],
)
def test_backbones_have_the_published_number_of_parameters(text: str, params: int) -> None:
    config = config_of(text, Detector(head_convs=1), classes=1)
    channels = config["neck"]["in_channels"][0]
    anchors = 9
    rest = (channels + 1) + (9 + 1) + 2 * (9 + 1) + anchors * (9 + 1) + 4 * anchors * (9 + 1)
    assert count_costs(config, InputSize(512, 512))[1] == params + rest


@pytest.mark.parametrize("text", ["ResNet18(w=16) FPN(P1-P5,c=16) GA-RPN 2FC", "MobileNetV2(w=16) RetinaNet"])
def test_sides_are_padded_to_multiples_of_32(text: str) -> None:
    def cost(size: str) -> int:
        return count_costs(config_of(f"{size} {text}"), InputSize.parse(size))[0]

    assert cost("800x600") == cost("800x608") == cost("769x577")
    assert cost("1333x800") == cost("1344x800")
    assert cost("800x576") < cost("800x600") < cost("801x600")
    assert cost("600x800") == cost("800x600")


def test_a_head_costs_in_proportion_to_its_proposals() -> None:
    def cost(text: str, proposals: int) -> int:
        detector = Detector(proposals=proposals, fc_channels=64)
        return count_costs(config_of(f"256x256 {text}", detector), InputSize(256, 256))[0]

    per_proposal = 49 * 16 * 64 + 64 * 64
    single, cascade = "ResNet18(w=16) FPN(P1-P5,c=16) RPN 2FC", "ResNet18(w=16) FPN(P1-P5,c=16) RPN Cascade(n=3)"
    assert cost(single, 150) - cost(single, 50) == 100 * (per_proposal + 64 * (5 + 1) + 64 * 4 * 5)
    assert cost(cascade, 150) - cost(cascade, 50) == 100 * 3 * (per_proposal + 64 * (5 + 1) + 64 * 4)
    guided = single.replace("RPN", "GA-RPN")
    assert cost(guided, 1000) == cost(guided, 600) > cost(guided, 599)


def test_counting_does_not_change_the_config() -> None:
    text = "96x64 ResNet18(w=16) FPN(P1-P5,c=16) GA-RPN Cascade(n=2)"
    config = config_of(text)
    count_costs(config, InputSize(96, 64))
    assert config == config_of(text)


def test_a_process_that_has_loaded_nothing_else_can_count() -> None:
    program = (
        "from smnas_optuna.parts.architecture import Architecture\n"
        "from smnas_optuna.parts.model_config import model_config\n"
        "from smnas_optuna.detector.counting import count_costs\n"
        "from smnas_optuna.parts.detector import Detector\n"
        "architecture = Architecture.parse('512x512 MobileNetV2 FPN(P2-P5,c=128) GA-RPN Cascade(n=2)')\n"
        "config = model_config(architecture, classes=5, detector=Detector(norm='GN'))\n"
        "print(*count_costs(config, architecture.input_size))"
    )
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    config = config_of("512x512 MobileNetV2 FPN(P2-P5,c=128) GA-RPN Cascade(n=2)", Detector(norm="GN"))
    assert tuple(map(int, completed.stdout.split())) == count_costs(config, InputSize(512, 512))


@st.composite
def arrows(draw: st.DrawFn) -> tuple[Architecture, Architecture]:
    """Two architectures of the structural space, the first of which precedes the second in its order."""

    def pick(*values: int) -> tuple[int, int]:
        one, other = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        return min(one, other), max(one, other)

    sizes = [InputSize.parse(text) for text in ("512x512", "800x600", "1080x720", "1333x800")]
    small_size, large_size = pick(*range(4))
    families = (("ResNet18", "ResNet34"), ("ResNet50", "ResNet101"), ("ResNeXt50", "ResNeXt101"), ("MobileNetV2",) * 2)
    family = draw(st.sampled_from(families))
    shallow, deep = pick(0, 1)
    narrow, wide = pick(16, 32, 64)
    small_neck = large_neck = None
    if draw(st.integers(0, 4)):
        few, many = pick(64, 128, 256)
        first = draw(st.integers(1, 4))
        last_input = draw(st.integers(first, 4))
        last_output = draw(st.integers(last_input, 6))
        small_neck = FPN(first, last_input, last_output, few)
        larger_input = draw(st.integers(last_input, 4))
        larger_output = draw(st.integers(max(larger_input, last_output), 6))
        large_neck = FPN(draw(st.integers(1, first)), larger_input, larger_output, many)
    rpn = draw(st.sampled_from((None, RPN(), GuidedAnchoringRPN())))
    few_stages, more_stages = pick(1, 2, 3, 4)
    small_head = RetinaNetHead() if rpn is None else RCNNHead(few_stages)
    large_head = RetinaNetHead() if rpn is None else RCNNHead(more_stages)
    small_backbone = CLASSIC_BACKBONES[family[shallow]](family[shallow], narrow)
    large_backbone = CLASSIC_BACKBONES[family[deep]](family[deep], wide)
    return (
        Architecture(sizes[small_size], small_backbone, small_neck, rpn, small_head),
        Architecture(sizes[large_size], large_backbone, large_neck, rpn, large_head),
    )


@settings(max_examples=20, deadline=None, derandomize=True)
@given(arrows(), st.sampled_from([1, 80, 1000]), st.sampled_from([1, 4]))
def test_an_architecture_that_precedes_another_costs_no_more(
    arrow: tuple[Architecture, Architecture], classes: int, head_convs: int
) -> None:
    small, large = arrow
    (small_group, small_vector), (large_group, large_vector) = order(small), order(large)
    assert small_group == large_group
    assert all(one <= other for one, other in zip(small_vector, large_vector, strict=True))
    detector = Detector(head_convs=head_convs)
    small_costs, large_costs = (
        count_costs(model_config(one, classes=classes, detector=detector), one.input_size) for one in arrow
    )
    assert small_costs[0] <= large_costs[0]
    assert small_costs[1] <= large_costs[1]
