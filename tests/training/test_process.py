"""Training processes, tested without stand-ins: they are forked, they train, and they are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from mmengine.config import Config
from mmengine.runner import Runner

import smnas_optuna.detector.layers  # noqa: F401  # provides mmcv's operators
from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.detector.pretrained import Pretrained
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe import Recipe
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.search.search import required_weights
from smnas_optuna.search.structural import StructuralSearch
from smnas_optuna.training.job import (
    CostRequest,
    Costs,
    DeviceRequest,
    Event,
    Failure,
    Initialised,
    Job,
    Memory,
    Progress,
    Scores,
    UntrainedLatency,
)
from smnas_optuna.training.outcome import Outcome
from smnas_optuna.training.process import count, evaluate, probe
from smnas_optuna.training.runner_config import runner_config
from smnas_optuna.training.server import preload
from tests.commands import training_server

ARCHITECTURE = Architecture.parse("64x48 ResNet18(w=8) FPN(P2-P4,c=16) RPN 2FC")


@pytest.fixture(scope="module", autouse=True)
def _server() -> None:
    preload()


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(str(tiny_recipe), ["structural.training.epochs=2"])


@pytest.fixture
def job(recipe: Recipe, tmp_path: Path) -> Job:
    return make_job(recipe, tmp_path)


def make_job(recipe: Recipe, folder: Path) -> Job:
    stage = recipe.structural
    dataset = open_dataset(recipe.dataset)
    return Job(ARCHITECTURE, dataset, stage.detector, stage.training, recipe.device, folder / "trial", kind="cpu")


def children_of_server() -> set[int]:
    return {child.pid for child in training_server().children(recursive=True)}


def wait_until_gone(before: set[int]) -> None:
    deadline = time.monotonic() + 10
    while children_of_server() - before:
        assert time.monotonic() < deadline, "the training process lives on"
        time.sleep(0.05)


def test_an_evaluation_reports_costs_then_each_epoch_then_scores(job: Job) -> None:
    events = list(evaluate(job))
    costs, initialised, memory, untrained, first, second, scores = events
    assert isinstance(costs, Costs)
    assert initialised == Initialised("scratch")
    assert isinstance(memory, Memory)
    assert memory.parts == 1
    assert memory.bytes > 0
    assert isinstance(untrained, UntrainedLatency)
    assert untrained.milliseconds > 0
    assert costs == count(CostRequest((ARCHITECTURE,), 2, job.detector), job.folder / "count.log")[0]
    assert isinstance(first, Progress)
    assert isinstance(second, Progress)
    assert (first.epoch, second.epoch, second.epochs) == (1, 2, 2)
    assert first.loss > 0
    assert isinstance(scores, Scores)
    assert set(scores.metrics) == {"map", "map_50", "map_75", "map_small", "map_medium", "map_large"}
    assert all(value == -1 or 0 <= value <= 1 for value in scores.metrics.values())
    assert scores.latency_ms > 0
    assert scores.train_seconds > 0


def test_an_evaluation_saves_a_config_that_mmdetection_runs_a_log_and_the_weights(job: Job) -> None:
    assert isinstance(list(evaluate(job))[-1], Scores)
    config = Config.fromfile(job.folder / "config.py")
    assert config.model.roi_head.bbox_head.num_classes == 2
    assert config.custom_imports["imports"] == [
        "smnas_optuna.detector.layers",
        *(f"smnas_optuna.training.{module}" for module in ("sparse_logging", "optimizing", "transforms")),
    ]
    assert "coco/bbox_mAP" in (job.folder / "output.log").read_text(encoding="utf-8")
    weights = torch.load(job.folder / "weights.pth")["state_dict"]
    assert weights["backbone.conv1.weight"].shape == (8, 3, 7, 7)


def detections_of_mmdetection(job: Job, weights: Path, image: Path) -> list[list[float]]:
    """Return corners and scores of MMDetection's detections, made in a process that does not import this package."""
    code = (
        "import json, sys, smnas_optuna.detector.layers\n"
        "from mmdet.apis import inference_detector, init_detector\n"
        "config, weights, image = sys.argv[1:]\n"
        "model = init_detector(config, weights, device='cpu')\n"
        "assert model.dataset_meta['classes'] == ['0', '1']\n"
        "detections = inference_detector(model, image).pred_instances\n"
        "boxes = zip(detections.bboxes.tolist(), detections.scores.tolist(), strict=True)\n"
        "print(json.dumps([[*box, score] for box, score in boxes]))"
    )
    command = [sys.executable, "-c", code, str(job.folder / "config.py"), str(weights), str(image)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    detections: list[list[float]] = json.loads(ended.stdout.splitlines()[-1])
    return detections


def test_mmdetection_makes_the_same_detections_with_the_saved_weights(job: Job, tmp_path: Path) -> None:
    assert isinstance(list(evaluate(job))[-1], Scores)
    trained = torch.load(job.folder / "weights.pth")
    runner = Runner.from_cfg(runner_config(replace(job, folder=tmp_path / "again")))
    runner.model.load_state_dict(trained["state_dict"])
    runner.model.eval()
    batch = next(iter(runner.build_dataloader(runner.cfg.test_dataloader)))
    with torch.inference_mode():
        (sample,) = runner.model.test_step(batch)
    expected = torch.cat([sample.pred_instances.bboxes, sample.pred_instances.scores[:, None]], dim=1)
    assert len(expected) > 0
    detections = detections_of_mmdetection(job, job.folder / "weights.pth", Path(sample.img_path))
    torch.testing.assert_close(torch.tensor(detections), expected, atol=1e-3, rtol=1e-3)

    for tensor in trained["state_dict"].values():
        tensor.zero_()
    torch.save(trained, tmp_path / "zeros.pth")
    assert detections_of_mmdetection(job, tmp_path / "zeros.pth", Path(sample.img_path)) != detections


def test_the_same_job_gives_the_same_scores(recipe: Recipe, tmp_path: Path) -> None:
    scores = [list(evaluate(make_job(recipe, tmp_path / name)))[-1] for name in ("one", "other")]
    assert isinstance(scores[0], Scores)
    assert isinstance(scores[1], Scores)
    assert scores[0].metrics == scores[1].metrics


def test_a_detector_without_detections_has_an_average_precision_of_0(job: Job) -> None:
    untrained = job.training.model_copy(update={"lr": 1e-9, "final_lr": 0.0, "epochs": 1})
    silent = replace(job, training=untrained, architecture=Architecture.parse("64x48 ResNet18(w=8) RetinaNet"))
    scores = list(evaluate(silent))[-1]
    assert isinstance(scores, Scores)
    assert set(scores.metrics.values()) == {0.0}


def test_the_failure_of_a_diverged_training_names_epoch_and_learning_rate(job: Job) -> None:
    training = job.training.model_copy(update={"lr": 1e30, "clip_gradients": None})
    failure = list(evaluate(replace(job, training=training)))[-1]
    assert isinstance(failure, Failure)
    assert failure.reason.startswith("loss became nan in epoch ")
    assert "at learning rate" in failure.reason


def test_a_training_that_exceeds_its_time_limit_fails_and_is_killed(job: Job) -> None:
    before = children_of_server()
    training = job.training.model_copy(update={"epochs": 10_000, "time_limit_minutes": 0.05})
    started = time.monotonic()
    failure = list(evaluate(replace(job, training=training)))[-1]
    assert failure == Failure("time limit: over 3 s", Outcome.TIMED_OUT)
    assert time.monotonic() - started < 30
    wait_until_gone(before)


def _first_epoch(events: Iterator[Event]) -> None:
    next(event for event in events if isinstance(event, Progress))


def test_a_killed_training_process_fails_its_trial_with_the_signal(job: Job) -> None:
    before = children_of_server()
    events = evaluate(replace(job, training=job.training.model_copy(update={"epochs": 10_000})))
    _first_epoch(events)
    (process,) = children_of_server() - before
    os.kill(process, signal.SIGKILL)
    failure = [event for event in events if isinstance(event, Failure)]
    assert len(failure) == 1
    assert failure[0].reason == "crashed: the training process got SIGKILL"


def test_closing_an_evaluation_ends_its_process_and_its_loaders(job: Job) -> None:
    before = children_of_server()
    training = job.training.model_copy(update={"epochs": 10_000})
    events = evaluate(replace(job, training=training, loader_workers=1))
    _first_epoch(events)
    assert len(children_of_server() - before) >= 2
    events.close()
    wait_until_gone(before)


def test_an_evaluation_ends_at_once_when_one_of_until_becomes_readable(job: Job) -> None:
    before = children_of_server()
    training = job.training.model_copy(update={"epochs": 10_000})
    read, write = os.pipe()
    with open(read, "rb") as stop, open(write, "wb") as signal_to_stop:
        events = evaluate(replace(job, training=training, loader_workers=1), until=[stop])
        _first_epoch(events)
        signal_to_stop.write(b"!")
        signal_to_stop.flush()
        assert not list(events)
        # All processes have ended when the generator has, and not only received a signal.
        assert not children_of_server() - before


def test_an_exception_is_reported_in_one_line_and_logged_with_its_traceback(job: Job) -> None:
    broken = replace(job.dataset, train=replace(job.dataset.train, annotations=Path("/absent.json")))
    failure = list(evaluate(replace(job, dataset=broken)))[-1]
    assert isinstance(failure, Failure)
    assert "/absent.json" in failure.reason
    assert "\n" not in failure.reason
    assert "Traceback" in (job.folder / "output.log").read_text(encoding="utf-8")


def test_several_processes_train_one_architecture_together(job: Job) -> None:
    together = replace(job, device=job.device.model_copy(update={"gpus_per_trial": 2}))
    events = list(evaluate(together))
    assert [type(event) for event in events] == [
        *(Costs, Initialised, Memory, UntrainedLatency, Progress, Progress, Scores)
    ]
    log = (job.folder / "output.log").read_text(encoding="utf-8")
    assert "Distributed training: True" in log
    assert "GPU number: 2" in log


def test_the_failure_of_one_of_several_processes_is_reported(job: Job) -> None:
    training = job.training.model_copy(update={"lr": 1e30, "clip_gradients": None})
    device = job.device.model_copy(update={"gpus_per_trial": 2})
    failure = list(evaluate(replace(job, training=training, device=device)))[-1]
    assert isinstance(failure, Failure)
    assert failure.reason.startswith("loss became nan in epoch")
    assert failure.outcome is not Outcome.INTERRUPTED


def test_a_disk_that_is_full_for_one_of_several_processes_is_not_the_architectures_fault(job: Job) -> None:
    device = job.device.model_copy(update={"gpus_per_trial": 2})
    job.folder.mkdir(parents=True)
    (job.folder / "config.py").symlink_to("/dev/full")
    failure = list(evaluate(replace(job, device=device)))[-1]
    assert isinstance(failure, Failure)
    assert failure.reason.startswith("OSError: [Errno 28]")
    assert failure.outcome is Outcome.INTERRUPTED


def test_the_crash_of_one_of_several_processes_is_reported(job: Job) -> None:
    device = job.device.model_copy(update={"gpus_per_trial": 2})
    training = job.training.model_copy(update={"epochs": 10_000})
    before = children_of_server()
    events = evaluate(replace(job, training=training, device=device))
    _first_epoch(events)
    youngest = max(children_of_server() - before)
    os.kill(youngest, signal.SIGSEGV)
    failure = list(events)[-1]
    assert isinstance(failure, Failure)
    assert failure.reason.startswith("crashed: process ")
    assert "of 2: " in failure.reason
    assert "SIGSEGV" in failure.reason


def test_a_backbone_is_initialised_from_a_file_of_weights(recipe: Recipe, job: Job, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = torchvision.models.resnet18().state_dict()
    torch.save(weights, tmp_path / "resnet18.pth")
    training = job.training.model_copy(update={"epochs": 1})
    detector = job.detector.model_copy(update={"norm": "BN", "weight_standardization": False})
    architecture = Architecture.parse("64x48 ResNet18 FPN(P2-P4,c=16) RPN 2FC")
    job = replace(job, training=training, detector=detector, architecture=architecture)
    scores = list(evaluate(replace(job, weights=Pretrained(str(tmp_path / "resnet18.pth"), "file"))))[-1]
    assert isinstance(scores, Scores)
    trained = torch.load(job.folder / "weights.pth")["state_dict"]
    # The stem is frozen if weights are given, so it still equals the file's.
    assert torch.equal(trained["backbone.conv1.weight"], weights["conv1.weight"])


def request(recipe: Recipe) -> DeviceRequest:
    return DeviceRequest(recipe, "structural", required_weights(StructuralSearch(recipe)))


def test_weights_of_another_network_are_refused_with_the_first_mismatch(tiny_recipe: Path, tmp_path: Path) -> None:
    torch.save(torchvision.models.mobilenet_v2().state_dict(), tmp_path / "mobile.pth")
    given = f"structural.training.weights={{ResNet18: {tmp_path}/mobile.pth, MobileNetV2: {tmp_path}/mobile.pth}}"
    with pytest.raises(
        UserError, match=r"mobile\.pth for ResNet18\(w=8\) does not fit: expected conv1\.weight of shape"
    ):
        probe(request(load_recipe(str(tiny_recipe), [given])), tmp_path / "output.log")


def test_absent_weights_are_a_user_error_that_names_the_key(tiny_recipe: Path, tmp_path: Path) -> None:
    absent = f"structural.training.weights={{ResNet18: {tmp_path}/absent.pth, MobileNetV2: {tmp_path}/absent.pth}}"
    with pytest.raises(
        UserError, match=r"structural\.training\.weights: .*absent\.pth for ResNet18\(w=8\) cannot be loaded"
    ):
        probe(request(load_recipe(str(tiny_recipe), [absent])), tmp_path / "output.log")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA GPU")
def test_an_absent_gpu_is_a_user_error(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"device\.kind: found cuda"):
        probe(request(load_recipe(str(tiny_recipe), ["device.kind=cuda"])), tmp_path / "output.log")


def test_probe_returns_the_name_of_the_device(recipe: Recipe, tmp_path: Path) -> None:
    target = probe(request(recipe), tmp_path / "output.log")
    assert (target.kind, target.count) == ("cpu", 1)
    assert target.name.endswith("1 thread")
