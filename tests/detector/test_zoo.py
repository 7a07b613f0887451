import pytest

from smnas_optuna.detector.counting import build_on_meta, published_model
from smnas_optuna.detector.zoo import DETECTORS, find_backbone, find_detector
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.parts.backbones.resnet import ResNet


def test_the_found_detectors_are_those_of_table_2() -> None:
    assert [str(DETECTORS[f"E{k}"].architecture) for k in range(6)] == [
        "512x512 basicblock_64_1-21-21-12 FPN(P2-P5,c=128) RPN 2FC",
        "800x600 basicblock_72_111-2111-2-111112 FPN(P2-P5,c=256) RPN 2FC",
        "800x600 basicblock_56_12-11111-211-1112 FPN(P1-P5,c=128) RPN Cascade(n=3)",
        "800x600 bottleneck_56_211-111111111-2111111-11112111 FPN(P1-P5,c=128) RPN Cascade(n=3)",
        "800x600 Xbottleneck_56_21-21-111111111111111-2111111 FPN(P1-P5,c=256) GA-RPN Cascade(n=3)",
        "1333x800 Xbottleneck_56_21-21-11111111111111-21111111 FPN(P1-P5,c=256) GA-RPN Cascade(n=3)",
    ]
    assert [DETECTORS[f"E{k}"].ap for k in range(6)] == [27.1, 34.3, 40.1, 42.7, 43.9, 46.1]
    assert [DETECTORS[f"E{k}"].milliseconds for k in range(6)] == [24.5, 32.2, 39.5, 50.7, 80.2, 108.1]


@pytest.mark.parametrize("name", [name for name, entry in DETECTORS.items() if entry.config])
def test_detectors_without_an_architecture_are_built_from_mmdetections_config(name: str) -> None:
    config = DETECTORS[name].config
    assert config is not None
    build_on_meta(published_model(config))


def test_every_detector_has_an_architecture_or_a_config() -> None:
    for entry in DETECTORS.values():
        assert (entry.architecture is None) != (entry.config is None)
        assert entry.architecture is None or str(entry.architecture.input_size) == entry.input_size


def test_names_are_found_in_any_case_and_similar_ones_are_suggested() -> None:
    assert find_detector("retinanet") is DETECTORS["RetinaNet"]
    assert find_backbone("e3") == Architecture.parse(str(DETECTORS["E3"].architecture)).backbone
    assert find_backbone("r50") == ResNet("ResNet50")
    with pytest.raises(ValueError, match="'RetinNet': no such detector; did you mean RetinaNet"):
        find_detector("RetinNet")
    with pytest.raises(ValueError, match="its backbone has no code"):
        find_backbone("FSAF")
