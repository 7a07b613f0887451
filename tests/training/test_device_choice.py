"""Which device a worker trains on, and how it configures training for it; GPUs are replaced by stand-ins."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.timing.device import FoundGpus
from smnas_optuna.timing.owned_lock import Owner
from smnas_optuna.training import device_choice
from smnas_optuna.training.job import DeviceRequest, Job
from smnas_optuna.training.runner_config import runner_config

OTHER = Owner(4711, "work_dirs/other")
Choose = Callable[..., tuple[list[int], str]]


@pytest.fixture
def choose(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Choose:
    """Return a function that chooses among GPUs 0, 1, ..., given the searches that use each of them."""

    def call(
        found: FoundGpus, used: dict[int, list[Owner]] | None = None, *settings: str, **request: Any
    ) -> tuple[list[int], str]:
        searches = {f"GPU-{index}": owners for index, owners in (used or {}).items()}
        monkeypatch.setattr(device_choice, "find_gpus", lambda: found)
        monkeypatch.setattr(device_choice, "gpu_uuid", lambda index: f"GPU-{index}")
        monkeypatch.setattr(device_choice, "announced_searches", lambda uuid: searches.get(uuid, []))
        recipe = load_recipe(str(tiny_recipe), ["device.kind=auto", *settings])
        return device_choice.choose_gpus(DeviceRequest(recipe, "structural", **request))

    return call


def gpus(*usable: int, problem: str = "") -> FoundGpus:
    return FoundGpus(3, usable, problem)


def test_a_run_uses_the_gpus_with_the_fewest_other_searches(choose: Choose) -> None:
    assert choose(gpus(0, 1, 2)) == ([0], "")
    assert choose(gpus(0, 1, 2), {0: [OTHER]}) == ([1], "")
    two = ("device.gpus_per_trial=2", "structural.training.batch_size=2")
    assert choose(gpus(0, 1, 2), {1: [OTHER]}, *two) == ([0, 2], "")


def test_a_worker_uses_the_gpus_that_it_was_assigned(choose: Choose) -> None:
    chosen, warning = choose(gpus(0, 1), {0: [OTHER]}, gpus=("5", "7"))
    assert chosen == [0]
    assert warning.startswith("shares a GPU with process 4711 (work_dirs/other)")
    # Workers of the same run that share a GPU on purpose are not reported.
    assert choose(gpus(0), {0: [OTHER]}, gpus=("5",), sharing=2) == ([0], "")


def test_a_gpu_that_torch_cannot_use_is_skipped_with_a_warning(choose: Choose) -> None:
    problem = "GPU 0: no kernel image is available"
    assert choose(gpus(1, 2, problem=problem)) == ([1], problem)
    assert choose(gpus(problem="the driver is too old")) == (
        [],
        "trains on the CPU, since torch cannot use the GPU: the driver is too old",
    )
    with pytest.raises(UserError, match="found cuda, but the driver is too old; expected auto or cpu"):
        choose(gpus(problem="the driver is too old"), None, "device.kind=cuda")
    with pytest.raises(UserError, match=r"found 2, but there are 1 GPUs that torch can use \(GPU 0: no kernel"):
        choose(gpus(1, problem=problem), None, "device.gpus_per_trial=2", "structural.training.batch_size=2")
    assert choose(gpus(0), None, "device.kind=cpu") == ([], "")


@pytest.mark.parametrize(
    ("cores", "workers", "gpus_per_trial", "expected"),
    [(16, 1, 1, 8), (16, 2, 1, 7), (16, 1, 8, 2), (64, 8, 1, 7), (4, 1, 1, 3), (2, 4, 1, 2)],
)
def test_the_number_of_loader_processes_depends_on_the_cores(
    cores: int, workers: int, gpus_per_trial: int, expected: int, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_choice, "usable_cores", lambda: set(range(cores)))
    batches = [f"{stage}.training.batch_size={gpus_per_trial}" for stage in ("structural", "modular", "transfer")]
    settings = [f"device.gpus_per_trial={gpus_per_trial}", *batches]
    request = DeviceRequest(load_recipe(str(tiny_recipe), settings), "structural", workers=workers)
    assert device_choice._loader_workers(request, "cuda") == expected
    assert device_choice._loader_workers(request, "cpu") == 2


def test_all_parts_of_a_gpu_are_listed_although_a_process_sees_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1a,MIG-2b")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(device_choice, "find_gpus", lambda: FoundGpus(1, (0,), ""))
    reported: list[Any] = []
    device_choice.visible_gpus(None, reported.append)
    assert reported == [(("MIG-1a", "MIG-2b"), "")]


def config(tiny_recipe: Path, folder: Path, kind: str, *settings: str) -> Config:
    recipe = load_recipe(str(tiny_recipe), list(settings))
    stage, dataset = recipe.structural, open_dataset(recipe.dataset)
    architecture = Architecture.parse("64x48 ResNet18(w=8) RetinaNet")
    job = Job(architecture, dataset, stage.detector, stage.training, recipe.device, folder, kind=kind)
    return runner_config(job)


def test_the_config_for_a_gpu_avoids_waiting_for_it(tiny_recipe: Path, tmp_path: Path) -> None:
    on_gpu = config(tiny_recipe, tmp_path, "cuda", "structural.training.amp=true")
    assert on_gpu.train_dataloader.pin_memory
    assert on_gpu.test_dataloader.pin_memory
    assert on_gpu.model.data_preprocessor.non_blocking
    assert on_gpu.optim_wrapper.type == "SparseAmpOptimWrapper"
    assert on_gpu.optim_wrapper.dtype in ("bfloat16", "float16")
    assert config(tiny_recipe, tmp_path, "cuda").optim_wrapper.optimizer.fused
    on_cpu = config(tiny_recipe, tmp_path, "cpu")
    assert not on_cpu.train_dataloader.pin_memory
    assert on_cpu.optim_wrapper.type == "SparseOptimWrapper"
    assert "fused" not in on_cpu.optim_wrapper.optimizer


def test_a_step_that_overflows_in_mixed_precision_changes_nothing(tiny_recipe: Path, tmp_path: Path) -> None:
    settings = dict(config(tiny_recipe, tmp_path, "cuda", "structural.training.amp=true").optim_wrapper.optimizer)
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = getattr(torch.optim, settings.pop("type"))([weight], **settings)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.inf * weight.sum()).backward()  # type: ignore[no-untyped-call]
    scaler.step(optimizer)
    assert weight.tolist() == [1.0] * 4
    assert not optimizer.state[weight]


def test_the_config_of_a_trial_can_be_trained_in_another_process(tiny_recipe: Path, tmp_path: Path) -> None:
    config(tiny_recipe, tmp_path / "trial", "cpu").dump(tmp_path / "config.py")
    program = (
        "from mmengine.config import Config; from mmengine.registry import HOOKS, OPTIM_WRAPPERS;"
        "config = Config.fromfile('config.py');"
        "print(OPTIM_WRAPPERS.get(config.optim_wrapper.type), HOOKS.get(config.default_hooks.runtime_info.type))"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "SparseOptimWrapper'" in ended.stdout
    assert "SparseRuntimeInfoHook'" in ended.stdout
