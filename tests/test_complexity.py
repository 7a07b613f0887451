import json
from pathlib import Path

import pytest

from tests.commands import run

E2 = "basicblock_56_12-11111-211-1112"


def complexity(folder: Path, *arguments: object) -> dict[str, object]:
    ended = run("complexity", *arguments, "--json", folder=folder)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, object] = json.loads(ended.stdout)
    return found


def test_a_code_has_integer_costs(tmp_path: Path) -> None:
    found = complexity(tmp_path, E2, "--input", "224x224", "--classes", 1000)
    assert (found["params"], found["flops"]) == (9928260, 2441510400)
    assert complexity(tmp_path, E2.replace("_", " "))["backbone"] == E2
    # The input is padded, as detectors do.
    assert complexity(tmp_path, E2, "--input", "800x600") == complexity(tmp_path, E2, "--input", "800x608") | {
        "input": "800x600"
    }


def test_a_classic_backbone_has_costs(tmp_path: Path) -> None:
    resnet = complexity(tmp_path, "R50", "--classes", 1000)
    assert resnet["params"] == 25557032
    assert resnet == complexity(tmp_path, "ResNet50", "--classes", 1000)
    assert complexity(tmp_path, "ResNet18(w=32)")["params"] == 2798880
    # Without the last convolution to 1280 channels, which detectors do not use.
    assert complexity(tmp_path, "MobileNetV2")["params"] == 1811712


@pytest.mark.parametrize("arguments", [["E3"], ["--zoo", "E3"]])
def test_the_whole_zoo_detector_is_counted_at_its_published_input_size(tmp_path: Path, arguments: list[str]) -> None:
    found = complexity(tmp_path, *arguments)
    whole = found["detector"]
    assert isinstance(whole, dict)
    assert found["backbone"] == "bottleneck_56_211-111111111-2111111-11112111"
    assert found["input"] == "800x600"
    assert whole["architecture"] == f"800x600 {found['backbone']} FPN(P1-P5,c=128) RPN Cascade(n=3)"
    assert whole["flops"] > found["flops"]
    assert whole["params"] > found["params"]


def test_without_json_the_costs_are_printed_as_text(tmp_path: Path) -> None:
    printed = run("complexity", "--zoo", "Mask-RCNN", folder=tmp_path)
    assert printed.returncode == 0, printed.stderr
    assert "mask_rcnn/mask-rcnn_r101_fpn_1x_coco.py" in printed.stdout
    assert "published: 40.2 AP on COCO test-dev, 105.0 ms on a V100 at 1333x800" in printed.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["basicblock_56_12-13-2-1"], "at character 19 found '3'"),
        (["basicblock_57_1-2-2-2"], "found the odd base 57"),
        (["E2", "--input", "800"], "input size '800': expected WIDTHxHEIGHT"),
        (["--zoo", "E9"], "'E9': no such detector"),
        ([], "CODE: expected a backbone code"),
        (["E2", "--zoo", "E2"], "CODE: expected a backbone code"),
        (["E2", "--classes", "0"], "--classes"),
    ],
)
def test_a_user_error_is_one_line_with_exit_code_2(tmp_path: Path, arguments: list[str], expected: str) -> None:
    ended = run("complexity", *arguments, folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert expected in ended.stderr
