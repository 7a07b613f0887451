"""Whether training fits into memory, and splitting a batch that does not fit."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.runner import Runner
from torch.optim.optimizer import register_optimizer_step_pre_hook

from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.errors import UserError
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.training.fitting import fit_batch, machine_memory, usable_memory
from smnas_optuna.training.job import (
    Costs,
    DeviceRequest,
    Event,
    Job,
    Memory,
    Progress,
    Resumed,
    Scores,
    TooLarge,
    TrialIdentity,
)
from smnas_optuna.training.process import evaluate, probe
from smnas_optuna.training.runner_config import runner_config
from smnas_optuna.training.server import preload

TEXT = "64x48 ResNet18(w=8) FPN(P2-P4,c=16) RPN 2FC"


@given(batch=st.integers(1, 64), fixed=st.integers(0, 50), each=st.integers(1, 20), usable=st.integers(0, 1000))
def test_the_smallest_number_of_equal_parts_that_fits_is_chosen(batch: int, fixed: int, each: int, usable: int) -> None:
    def needed(parts: int) -> int:
        # Accumulated gradients add to the memory that does not depend on the number of images.
        return fixed * (1 if parts == 1 else 2) + each * (batch // parts)

    result = fit_batch(batch, usable, needed, divisible=True)
    possible = [parts for parts in range(1, batch + 1) if batch % parts == 0 and needed(parts) <= usable]
    if possible:
        assert result == Memory(needed(possible[0]), possible[0])
    else:
        assert result == TooLarge(1, needed(batch), usable)


def test_an_indivisible_batch_fits_whole_or_not_at_all() -> None:
    assert fit_batch(8, 80, lambda parts: 80 // parts, divisible=False) == Memory(80, 1)
    assert fit_batch(8, 79, lambda parts: 80 // parts, divisible=False) == TooLarge(8, 80, 79)


def test_usable_memory_is_that_of_the_recipe_or_most_of_the_device() -> None:
    assert usable_memory("cpu", "CPU", 0.5, total=machine_memory()) == 2**29
    assert 0.5 * machine_memory() < usable_memory("cpu", "CPU", None, total=machine_memory()) < 0.8 * machine_memory()


@pytest.mark.parametrize("workers", [1, 4, 16])
def test_workers_that_share_a_gpu_do_not_exceed_its_memory(workers: int) -> None:
    context = 800 * 2**20  # of CUDA, with its workspace and kernels; measured on an H100
    total = 16 * 2**30
    each = usable_memory("cuda", "GPU", None, total=total, trainings=workers)
    assert 0.9 * total < workers * (each / 0.92 + context) <= total
    assert usable_memory("cuda", "GPU", 8.0, total=total, trainings=workers) == 8 * 2**30 // workers


def test_each_process_of_a_training_on_the_cpu_needs_memory() -> None:
    alone, both = (usable_memory("cpu", "CPU", None, total=2**34, processes=count) for count in (1, 2))
    assert alone - both == pytest.approx(0.8 * 2**30, abs=1)
    assert usable_memory("cpu", "CPU", None, total=2**30, trainings=2) == 0


def test_usable_memory_is_divided_among_the_workers_that_share_the_device(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(tiny_recipe), [])
    alone, shared = (
        probe(DeviceRequest(recipe, "structural", sharing=count), tmp_path / "log").memory for count in (1, 2)
    )
    assert shared < alone / 2
    assert 2 * shared == pytest.approx(alone - 0.8 * 2**30, abs=2)


def test_memory_gb_above_the_devices_memory_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"device\.memory_gb: found 1e\+06, but CPU of ours has \d+\.\d GiB"):
        usable_memory("cpu", "CPU of ours", 1e6, total=machine_memory())


def _file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


def test_the_lowest_limit_of_a_control_group_and_its_ancestors_applies(tmp_path: Path) -> None:
    _file(tmp_path / "proc/self/cgroup", "0::/job/step\n")
    _file(tmp_path / "sys/fs/cgroup/job/step/memory.max", "max\n")
    _file(tmp_path / "sys/fs/cgroup/job/memory.max", "1048576\n")
    _file(tmp_path / "sys/fs/cgroup/memory.max", "2097152\n")
    assert machine_memory(tmp_path) == 2**20


def test_the_limit_of_a_version_1_control_group_applies(tmp_path: Path) -> None:
    _file(tmp_path / "proc/self/cgroup", "5:cpu,cpuacct:/docker/1f\n4:memory:/docker/1f\n")
    _file(tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes", "4194304\n")
    assert machine_memory(tmp_path) == 2**22


def test_without_control_groups_the_machines_memory_applies(tmp_path: Path) -> None:
    assert machine_memory(tmp_path) == psutil.virtual_memory().total


@pytest.fixture(scope="module", autouse=True)
def _server() -> None:
    preload()


@pytest.fixture
def job(tiny_recipe: Path, tmp_path: Path) -> Job:
    recipe = load_recipe(str(tiny_recipe), ["structural.training.epochs=2", "structural.training.warmup_iterations=3"])
    stage = recipe.structural
    architecture = Architecture.parse(TEXT)
    dataset = open_dataset(recipe.dataset)
    return Job(architecture, dataset, stage.detector, stage.training, recipe.device, tmp_path / "trial", kind="cpu")


def evaluate_until_memory(job: Job) -> Memory | TooLarge:
    events = evaluate(job)
    result = next(event for event in events if isinstance(event, Memory | TooLarge))
    events.close()
    return result


def in_parts(job: Job) -> Job:
    """Return the job with slightly less memory than its whole batch needs."""
    whole = evaluate_until_memory(job)
    assert isinstance(whole, Memory)
    assert whole.parts == 1
    return replace(job, memory=whole.bytes - 1)


def test_a_batch_that_does_not_fit_is_split_into_parts(job: Job) -> None:
    tight = in_parts(job)
    costs, _, memory, _, *epochs, scores = evaluate(tight)
    assert isinstance(costs, Costs)
    assert isinstance(memory, Memory)
    assert memory.parts > 1
    assert memory.bytes <= tight.memory
    assert [type(event) for event in epochs] == [Progress, Progress]
    assert isinstance(scores, Scores)
    config = Config.fromfile(job.folder / "config.py")
    assert config.optim_wrapper.accumulative_counts == memory.parts
    assert config.train_dataloader.batch_size * memory.parts == job.training.batch_size


def test_an_architecture_for_which_a_single_image_does_not_fit_is_not_trained(job: Job) -> None:
    costs, _, memory = evaluate(replace(job, memory=2**20))
    assert isinstance(costs, Costs)
    assert isinstance(memory, TooLarge)
    assert (memory.images, memory.usable) == (1, 2**20)
    assert not (job.folder / "weights.pth").exists()


def test_a_batch_is_not_split_when_batch_normalisation_is_trained(job: Job) -> None:
    detector = job.detector.model_copy(update={"norm": "BN", "weight_standardization": False})
    result = evaluate_until_memory(in_parts(replace(job, detector=detector)))
    assert isinstance(result, TooLarge)
    assert result.images == job.training.batch_size


def test_batches_with_both_orientations_need_more_memory(job: Job) -> None:
    job = replace(job, architecture=Architecture.parse(TEXT.replace("64x48", "128x96")))
    alike, mixed = (
        evaluate_until_memory(replace(job, dataset=replace(job.dataset, has_both_orientations=both)))
        for both in (False, True)
    )
    assert isinstance(alike, Memory)
    assert isinstance(mixed, Memory)
    # Images are padded to 128x128 instead of 128x96; the weights take the same memory.
    assert 1.1 < mixed.bytes / alike.bytes < 4 / 3


def test_processes_on_a_cpu_share_the_memory(job: Job) -> None:
    device = job.device.model_copy(update={"gpus_per_trial": 2})
    together = replace(job, device=device, training=job.training.model_copy(update={"batch_size": 8}))
    needed = evaluate_until_memory(together)
    assert isinstance(needed, Memory)
    result = evaluate_until_memory(replace(together, memory=2 * needed.bytes - 2))
    assert isinstance(result, Memory)
    assert needed.parts == 1 < result.parts


def _first_epoch(job: Job) -> None:
    events = evaluate(job)
    next(event for event in events if isinstance(event, Progress))
    events.close()


def test_training_in_parts_resumes_with_the_same_number_of_parts_only(job: Job) -> None:
    training = job.training.model_copy(update={"epochs": 8})
    tight = in_parts(replace(job, training=training, identity=TrialIdentity("a1", "tiny/structural", 3, 3)))
    again = replace(
        tight,
        folder=tight.folder.with_name("trial_00005"),
        identity=TrialIdentity("a1", "tiny/structural", 5, 3),
        former=(tight.folder,),
    )
    _first_epoch(tight)
    resumed: list[Event] = [event for event in evaluate(again) if isinstance(event, Resumed | Scores)]
    assert [type(event) for event in resumed] == [Resumed, Scores]
    _first_epoch(tight)
    whole = [event for event in evaluate(replace(again, memory=job.memory)) if isinstance(event, Resumed | Scores)]
    assert [type(event) for event in whole] == [Scores]


def learning_rates(job: Job, parts: int) -> list[float]:
    """Train in this process, and return the learning rate of each step of the optimizer."""
    torch.manual_seed(0)
    runner = Runner.from_cfg(runner_config(replace(job, folder=job.folder / str(parts)), parts))
    rates: list[float] = []
    watch = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    runner.train()
    watch.remove()
    return rates


def test_training_in_parts_makes_the_same_steps_at_the_same_learning_rates(job: Job) -> None:
    job = replace(job, training=job.training.model_copy(update={"epochs": 5}))
    whole, halves = learning_rates(job, 1), learning_rates(job, 2)
    assert len(whole) == len(halves) == 5 * math.ceil(8 / job.training.batch_size)
    # With two parts the schedule has twice the iterations, so it is between two values when a step ends.
    for step, (earlier, later) in enumerate(itertools.pairwise(whole)):
        assert min(earlier, later) <= halves[step] * (1 + 1e-6)
        assert halves[step] <= max(earlier, later) * (1 + 1e-6)
