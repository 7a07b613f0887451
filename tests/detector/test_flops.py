"""The formulae against torch's own counter on the built network, and against the paper's tables."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smnas_optuna.detector.counting import count_backbone
from smnas_optuna.detector.flops import backbone_costs, pad
from smnas_optuna.parts.architecture import InputSize
from smnas_optuna.parts.backbones.searched import BackboneCode

R18 = "basicblock_64_11-21-21-21"
R34 = "basicblock_64_111-2111-211111-211"
R101 = f"bottleneck_64_111-2111-2{22 * '1'}-211"
X101 = f"Xbottleneck_64_111-2111-2{22 * '1'}-211"
E0 = "basicblock_64_1-21-21-12"
E1 = "basicblock_72_111-2111-2-111112"
E2 = "basicblock_56_12-11111-211-1112"
E3 = "bottleneck_56_211-111111111-2111111-11112111"
E4 = "Xbottleneck_56_21-21-111111111111111-2111111"
E5 = "Xbottleneck_56_21-21-11111111111111-21111111"

# Table 6 at 224x224 with 1000 classes: parameters in millions and GFLOPs; None for what the paper misprints.
CLASSIFIERS = {
    R18: (11.68, 1.83),
    E0: (8.15, 1.37),
    R34: (21.80, 3.68),
    E1: (None, None),
    E2: (9.92, 2.46),
    R101: (44.55, 7.88),
    E3: (29.96, None),
    E4: (43.14, 7.58),
    E5: (45.74, 7.58),
}
# Table 7, its twelve rows: GFLOPs of the backbone at the detector's input.
BACKBONES = [
    (R18, "512x512", 9.54),
    (E0, "512x512", 7.16),
    (R34, "800x600", 35.68),
    (E1, "800x600", 28.33),
    (R34, "800x600", 35.68),
    (E2, "800x600", 23.81),
    (R101, "800x600", 76.34),
    (E3, "800x600", 59.22),
    (X101, "800x600", 78.16),
    (E4, "800x600", 73.50),
    (X101, "1333x800", 172.78),
    (E5, "1333x800", 162.45),
]


def test_the_papers_tables_are_reproduced() -> None:
    for code, (params, gflops) in CLASSIFIERS.items():
        costs = backbone_costs(BackboneCode.read(code), InputSize(224, 224), classes=1000)
        assert params is None or costs.params / 1e6 == pytest.approx(params, rel=1e-3), code
        assert gflops is None or costs.flops / 1e9 == pytest.approx(gflops, rel=0.025), code
    for code, size, gflops in BACKBONES:
        costs = backbone_costs(BackboneCode.read(code), InputSize.parse(size))
        assert costs.flops / 1e9 == pytest.approx(gflops, rel=0.025), (code, size)


@st.composite
def codes(draw: st.DrawFn, block: str) -> BackboneCode:
    stages = draw(st.tuples(*[st.text("12", min_size=1, max_size=3)] * 4))
    return BackboneCode(block, draw(st.integers(2, 8)) * 2, stages)


@pytest.mark.parametrize("examples", [30, pytest.param(300, marks=pytest.mark.long)])
@pytest.mark.parametrize("block", BackboneCode.BLOCKS)
def test_the_formulae_equal_torchs_counter_on_the_built_network(block: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(code=codes(block), width=st.integers(1, 150), height=st.integers(1, 150), stages=st.integers(1, 4))
    def check(code: BackboneCode, width: int, height: int, stages: int) -> None:
        config = {"type": "SearchedBackbone", "code": str(code), "out_indices": [stages - 1]}
        size = InputSize(width, height)
        assert backbone_costs(code, size, stages=stages) == count_backbone(config, pad(size))

    check()


@pytest.mark.parametrize("code", [R18, R34, R101, X101, E1, E3, E5, "MBblock_24_11-211-2111111-2111"])
def test_the_formulae_equal_torchs_counter_for_published_networks(code: str) -> None:
    config = {"type": "SearchedBackbone", "code": code}
    assert backbone_costs(BackboneCode.read(code), InputSize(64, 96)) == count_backbone(config, InputSize(64, 96))


def test_sides_are_padded_to_multiples_of_32() -> None:
    assert pad(InputSize(1333, 800)) == InputSize(1344, 800)
    assert pad(InputSize(1, 32)) == InputSize(32, 32)


def test_a_classifier_adds_its_weights_and_biases() -> None:
    code, size = BackboneCode.read(E0), InputSize(224, 224)
    without, with_classes = backbone_costs(code, size), backbone_costs(code, size, classes=10)
    assert with_classes.flops - without.flops == 10 * 512
    assert with_classes.params - without.params == 10 * 513


def test_bases_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(ValueError, match="found the odd base 57"):
        backbone_costs(BackboneCode.read("basicblock_57_1-2-2-2"), InputSize(224, 224))
    with pytest.raises(ValueError, match="expected 4 or more"):
        backbone_costs(BackboneCode.read("Xbottleneck_2_1-2-2-2"), InputSize(224, 224))
