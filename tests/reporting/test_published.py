import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from plotly.graph_objects import Scatter

from smnas_optuna.detector.zoo import DETECTORS, PAPERS_DETECTORS
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.reporting.figures import front_figure
from smnas_optuna.reporting.published import (
    KnownDetector,
    is_comparable,
    known_detectors,
    known_traces,
    mmdet_detectors,
    zoo_detectors,
)
from smnas_optuna.reporting.study_results import results_of
from tests.reporting.synthetic_study import detectors, finished, make_study

V100 = "Tesla V100-SXM2-16GB"
METAFILES = "mmdet/.mim/configs"


def coco_recipe(**dataset: Any) -> dict[str, Any]:
    recipe = load_recipe("coco").model_dump(mode="json")
    return {**recipe, "dataset": {**recipe["dataset"], **dataset}}


def known(name: str, ap: float, milliseconds: float, source: str = "A", **others: Any) -> KnownDetector:
    return KnownDetector(name, ap, milliseconds, "V100", None, "COCO", source, **others)


def points(trace: Scatter) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(trace.x, trace.y, strict=True) if x is not None]


def run_with_package(folder: Path, code: str) -> str:
    """Run ``code`` with the package mmdet in ``folder``, which must not be imported."""
    (folder / "mmdet").mkdir(exist_ok=True)
    (folder / "mmdet" / "__init__.py").write_text("raise RuntimeError('mmdet was imported')\n")
    paths = os.pathsep.join([str(folder), str(Path(__file__).parents[2])])
    process = subprocess.run(
        [sys.executable, "-c", f"from smnas_optuna.reporting.published import *\n{code}"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def write_metafile(folder: Path, text: str) -> None:
    metafile = folder / METAFILES / "some" / "metafile.yml"
    metafile.parent.mkdir(parents=True)
    metafile.write_text(text)


def test_the_zoo_has_the_papers_thirteen_detectors() -> None:
    zoo = {detector.name: detector for detector in zoo_detectors()}
    assert zoo.keys() == PAPERS_DETECTORS.keys()
    assert len(zoo) == 13
    assert zoo["E3"] == KnownDetector("E3", 0.427, 50.7, "V100", "800x600", "COCO", "SM-NAS paper", split="val")
    assert (zoo["NAS-FPN"].ap, zoo["NAS-FPN"].split) == (0.454, "test-dev")


def test_the_detectors_of_the_installed_mmdet_have_box_ap_and_time() -> None:
    found = mmdet_detectors()
    assert len(found) == 193
    assert len({detector.name for detector in found}) == len(found)
    assert all(0.2 < detector.ap < 0.5 and 14 < detector.milliseconds < 304 for detector in found)
    assert {(detector.dataset, detector.hardware, detector.batch_size) for detector in found} == {("COCO", "V100", 1)}
    assert [detector.precision for detector in found].count("FP16") == 4


@pytest.mark.parametrize(
    ("name", "ap", "milliseconds", "input_size", "precision"),
    [
        ("faster-rcnn_r50_fpn_1x_coco", 0.374, 46.73, "1333x800", "FP32"),
        ("retinanet_r50_fpn_amp-1x_coco", 0.364, 31.65, "1333x800", "FP16"),
        ("atss_r101_fpn_1x_coco", 0.415, 81.3, "1333x800", "FP32"),
        ("yolov3_d53_mstrain-416_273e_coco", 0.309, 16.34, "416x416", "FP32"),
        ("ssd300_coco", 0.255, 22.88, "300x300", "FP32"),
        ("faster-rcnn_r101-dconv-c3-c5_fpn_1x_coco", 0.427, 80.0, "1333x800", "FP32"),  # whose time is an integer
        ("cornernet_hourglass104_32xb3-210e-mstest_coco", 0.404, 256.41, "1333x800", "FP32"),
    ],
)
def test_a_detector_of_mmdet_has_the_values_of_its_metafile(
    name: str, ap: float, milliseconds: float, input_size: str, precision: str
) -> None:
    [found] = [detector for detector in mmdet_detectors() if detector.name == name]
    assert found == KnownDetector(
        name, ap, milliseconds, "V100", input_size, "COCO", "MMDetection 3.3.0", precision=precision, batch_size=1
    )


def test_models_without_box_ap_or_without_a_time_are_left_out() -> None:
    names = {detector.name for detector in mmdet_detectors()}
    assert "yolact_r50_1x8_coco" not in names
    assert "faster-rcnn_r50-caffe_fpn_1x_coco" not in names


def test_data_set_and_hardware_are_chosen_by_name() -> None:
    assert mmdet_detectors("coco", "v100") == mmdet_detectors()
    assert mmdet_detectors("LVIS v1") == []  # timed nowhere
    assert mmdet_detectors(hardware="A100") == []


def test_changing_the_returned_list_does_not_change_the_next_one() -> None:
    mmdet_detectors().clear()
    zoo_detectors().clear()
    assert mmdet_detectors()
    assert zoo_detectors()


def test_a_checkout_without_metafiles_has_no_detectors(tmp_path: Path) -> None:
    assert run_with_package(tmp_path, "print(mmdet_detectors())") == "[]\n"


def test_metafiles_are_read_without_importing_mmdet_or_torch(tmp_path: Path) -> None:
    model = """
- Name: {name}
  Metadata:
    inference time (ms/im):
      - {{value: 40, hardware: V100, backend: PyTorch, batch size: 1, mode: FP32, resolution: '(640, 1088)'}}
      - {{value: 9.5, hardware: A100, backend: TensorRT, batch size: 8, mode: FP16}}
  Results:
    - {{Task: Instance Segmentation, Dataset: COCO, Metrics: {{mask AP: 30.0}}}}
    - {{Task: Object Detection, Dataset: COCO, Metrics: {{box AP: 29.3}}}}
"""
    bare = "- {Name: bare, Metadata: null, Results: null}\n"
    # The list of models is at the top level, as in objects365's file, and has one model twice.
    write_metafile(tmp_path, model.format(name="one") + model.format(name="two") + model.format(name="one") + bare)
    code = """
import sys
for hardware in ("V100", "A100"):
    for found in mmdet_detectors(hardware=hardware):
        print(found.name, found.ap, found.milliseconds, found.input_size, found.precision, found.batch_size)
print("torch" in sys.modules, "mmdet" in sys.modules)
"""
    assert run_with_package(tmp_path, code).splitlines() == [
        "one 0.293 40.0 1088x640 FP32 1",
        "two 0.293 40.0 1088x640 FP32 1",
        "one 0.293 9.5 None FP16 8",
        "two 0.293 9.5 None FP16 8",
        "False False",
    ]


def test_the_error_about_a_metafile_that_is_not_yaml_is_one_line(tmp_path: Path) -> None:
    write_metafile(tmp_path, "Models:\n  - Name: [\n")
    code = "try:\n    mmdet_detectors()\nexcept UserError as error:\n    print(error)"
    [line] = run_with_package(tmp_path, code).splitlines()
    assert line.startswith(f"{tmp_path / METAFILES / 'some' / 'metafile.yml'}: expected a metafile of mmdet in YAML: ")


@pytest.mark.parametrize(
    ("device", "hardware", "comparable"),
    [
        ("NVIDIA V100-SXM2-16GB", "V100", True),
        ("Tesla V100-PCIE-32GB", "V100", True),
        ("tesla v100-sxm3-32gb", "V100", True),
        ("Tesla V100-SXM2-16GB (driver 470.57, power limit 163.00 W)", "V100", True),
        ("Tesla V100S-PCIE-32GB", "V100", False),
        ("GRID V100-8Q", "V100", False),
        ("NVIDIA A100-SXM4-40GB", "V100", False),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "A100", False),
        ("NVIDIA H100 80GB HBM3", "V100", False),
        ("Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz, 1 thread", "V100", False),
        ("NVIDIA GeForce RTX 2080 Ti", "RTX 2080", False),
        ("NVIDIA GeForce RTX 2080 Ti", "RTX 2080 Ti", True),
        ("", "V100", False),
        (V100, "", False),
    ],
)
def test_is_comparable_recognises_the_product_of_a_device(device: str, hardware: str, comparable: bool) -> None:
    assert is_comparable(device, hardware) is comparable


def test_a_study_on_coco_and_a_v100_is_compared_with_all_published_detectors(tmp_path: Path) -> None:
    study = make_study(tmp_path, detectors())
    study.set_user_attr("recipe", coco_recipe())
    assert known_detectors(results_of(study)) == [*zoo_detectors(), *mmdet_detectors()]
    assert known_detectors(results_of(study), "none") == []


def test_the_recorded_device_of_a_study_counts_before_a_trial_has_finished(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    study.set_user_attr("recipe", coco_recipe())
    assert known_detectors(results_of(study)) == []
    study.set_user_attr("device", {"name": V100, "precision": "float32"})
    assert len(known_detectors(results_of(study))) == 206


def test_times_of_another_device_are_shown_only_if_requested(tmp_path: Path) -> None:
    study = make_study(tmp_path, [finished(0.3, 20.0, device="NVIDIA A100-SXM4-40GB"), finished(0.2, 30.0)])
    study.set_user_attr("recipe", coco_recipe())
    assert known_detectors(results_of(study)) == []
    assert len(known_detectors(results_of(study), "all")) == 206


def test_one_comparable_device_among_several_is_enough(tmp_path: Path) -> None:
    trials = [finished(0.3, 20.0, device="NVIDIA A100-SXM4-40GB"), finished(0.2, 30.0, device=V100)]
    study = make_study(tmp_path, trials)
    study.set_user_attr("recipe", coco_recipe())
    assert len(known_detectors(results_of(study))) == 206


@pytest.mark.parametrize(
    ("root", "annotations", "is_coco"),
    [
        ("data/coco", "annotations/instances_val2017.json", True),
        ("/data/COCO2017", "instances_val2017.json", True),
        ("/data/ms-coco", "annotations/instances_minival2014.json", True),
        (".", "coco/annotations/instances_val2017.json", True),
        ("data/mine", "annotations/instances_val2017.json", False),
        ("data/coco", "annotations/instances_val2017_cats.json", False),
        ("data/cocoa", "annotations/instances_val2017.json", False),
        ("data/coco", "mine/val.json", False),
    ],
)
def test_coco_is_recognised_by_its_folder_and_its_annotations(
    tmp_path: Path, root: str, annotations: str, is_coco: bool
) -> None:
    study = make_study(tmp_path, detectors())
    study.set_user_attr("recipe", coco_recipe(root=root, val={"annotations": annotations, "images": "val2017"}))
    assert bool(known_detectors(results_of(study))) is is_coco
    assert known_detectors(results_of(study), "all")


def test_digits_and_studies_without_a_recipe_are_not_coco(tmp_path: Path) -> None:
    study = make_study(tmp_path, detectors())
    assert known_detectors(results_of(study)) == []
    study.set_user_attr("recipe", load_recipe("digits").model_dump(mode="json"))
    assert known_detectors(results_of(study)) == []


@pytest.mark.parametrize("metrics", [("map", "flops"), ("map_50", "latency_ms"), None])
def test_without_map_and_inference_time_no_published_detectors_are_shown(
    tmp_path: Path, metrics: tuple[str, str] | None
) -> None:
    study = make_study(tmp_path, detectors(), metrics=metrics)
    study.set_user_attr("recipe", coco_recipe())
    assert known_detectors(results_of(study)) == []
    assert known_detectors(results_of(study), "all") == []


def test_an_unknown_choice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="show 'some': expected one of comparable, all, none"):
        known_detectors(results_of(make_study(tmp_path)), "some")  # type: ignore[arg-type]


def test_each_source_has_one_trace_that_says_where_it_was_measured() -> None:
    zoo, mmdet = known_traces([*zoo_detectors(), *mmdet_detectors()])
    assert zoo.name == "SM-NAS paper, V100,<br>measured elsewhere"
    assert mmdet.name == "MMDetection 3.3.0, V100,<br>measured elsewhere"
    assert zoo.marker.symbol != mmdet.marker.symbol
    assert all(trace.marker.symbol.endswith("-open") for trace in (zoo, mmdet))
    assert sorted(points(zoo)) == sorted((entry.milliseconds, entry.ap) for entry in zoo_detectors())
    assert sorted(points(mmdet)) == sorted((entry.milliseconds, entry.ap) for entry in mmdet_detectors())
    assert known_traces([]) == []


def test_the_line_joins_the_front_and_nothing_else() -> None:
    [trace] = known_traces([known("b", 0.4, 30), known("d", 0.3, 50), known("a", 0.2, 10), known("c", 0.1, 20)])
    assert list(trace.x) == [10, 30, None, 20, None, 50]
    assert list(trace.y) == [0.2, 0.4, None, 0.1, None, 0.3]
    assert trace.line.shape == "hv"
    assert trace.connectgaps is False


def test_the_front_of_the_papers_detectors_consists_of_its_own_models() -> None:
    [trace] = known_traces(zoo_detectors())
    front = list(trace.x)[: list(trace.x).index(None)]
    assert front == [DETECTORS[f"E{number}"].milliseconds for number in range(6)]


def test_hover_texts_of_published_detectors_have_their_source_and_conditions() -> None:
    zoo, mmdet = known_traces([*zoo_detectors(), *mmdet_detectors()])
    texts = [text for text in (*zoo.hovertext, *mmdet.hovertext) if text]
    assert len(texts) == 206
    [text] = [text for text in texts if "<b>FSAF</b>" in text]
    assert text.split("<br>") == [
        "<b>FSAF</b>",
        "mAP 0.409 (COCO test-dev)",
        "inference time 92.5 ms on V100",
        "input size 1333x800",
        "SM-NAS paper, measured elsewhere",
    ]
    [text] = [text for text in texts if "<b>yolov3_d53_fp16_mstrain-608_273e_coco</b>" in text]
    assert text.split("<br>")[1:] == [
        "mAP 0.338 (COCO)",
        "inference time 20.8 ms on V100",
        "input size 608x608",
        "FP16, batch size 1",
        "MMDetection 3.3.0, measured elsewhere",
    ]


def test_long_names_are_wrapped_and_escaped() -> None:
    name = "cascade-mask-rcnn_x101-32x4d-syncbn-r16-gcb-c3-c5_fpn_1x_coco<i>"
    [trace] = known_traces([known(name, 0.4, 30)])
    heads = [line for line in trace.hovertext[0].split("<br>") if line.startswith("<b>")]
    assert "".join(line[3:-4] for line in heads) == name.replace("<i>", "&lt;i&gt;")
    assert len(heads) == 2


def test_published_detectors_are_drawn_behind_trials_and_keep_their_colour(tmp_path: Path) -> None:
    known_ones = known_traces(zoo_detectors())
    figure = front_figure(results_of(make_study(tmp_path, detectors())), known=known_ones)
    [index] = [index for index, trace in enumerate(figure.data) if trace.name == known_ones[0].name]
    assert figure.data[index].zorder < min(trace.zorder or 0 for i, trace in enumerate(figure.data) if i != index)
    for menu in figure.layout.updatemenus:
        for button in menu.buttons:
            visible = button.args[0].get("visible")
            assert visible is None or visible[index]
