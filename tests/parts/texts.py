"""Hypothesis strategies for parts, and the error message of a wrong text."""

import pytest
from hypothesis import strategies as st

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.backbone import ClassicBackbone
from smnas_optuna.parts.backbones.mobilenet import MobileNetV2
from smnas_optuna.parts.backbones.resnet import ResNet
from smnas_optuna.parts.backbones.searched import BackboneCode

FPN_LEVELS = [
    (first, last_input, last_output)
    for first in range(1, 5)
    for last_input in range(first, 5)
    for last_output in range(last_input, 7)
]
stages = st.text("12", min_size=1, max_size=25)
channels = st.integers(1, 4096)
backbone_codes = st.builds(
    BackboneCode, st.sampled_from(BackboneCode.BLOCKS), channels, st.tuples(stages, stages, stages, stages)
)


def error_of(text: str) -> str:
    """Return the error message of a text that is no architecture."""
    with pytest.raises(ValueError, match=r".") as refused:
        Architecture.parse(text)
    return str(refused.value)


CLASSIC_BACKBONES: dict[str, type[ClassicBackbone]] = {
    name: family for family in (ResNet, MobileNetV2) for name in family.DEPTHS if not name.endswith("-caffe")
}
"""The paper's backbones: their families by their names."""
