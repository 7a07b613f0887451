"""Behaviour on machines with a GPU, tested with stand-ins so that no GPU is needed."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed

from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.recipe.recipe_file import load_recipe
from smnas_optuna.timing.device import _kernel_problem
from smnas_optuna.training.failure import failure_of
from smnas_optuna.training.job import DeviceRequest, Failure, Job
from smnas_optuna.training.outcome import Outcome
from smnas_optuna.training.process import evaluate, probe, visible_gpus
from smnas_optuna.training.server import preload

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA GPU")

# Runs in each process before MMEngine is imported. It registers an accelerator for which autograd starts threads, as it
# does for a CUDA GPU, and records each process that asks CUDA's runtime for devices, which makes it unfit for forking.
SITE = """
import importlib.abc
import os
import sys


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "mmengine":
            sys.meta_path.remove(self)
            _prepare()


def _prepare():
    import torch
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    class Guard(torch._C._acc.DeviceGuard):
        def type_(self):
            return torch._C._autograd.DeviceType.PrivateUse1

    _setup_privateuseone_for_python_backend("stand_in", device_guard=Guard())
    ask = torch._C._cuda_getDeviceCount

    def note():
        with open(os.environ["ASKED"], "a") as file:
            print(os.getpid(), file=file)
        return ask()

    torch._C._cuda_getDeviceCount = note


sys.meta_path.insert(0, _Finder())
"""

PROGRAM = """
import json
import os
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import psutil
import torch

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.training.job import Job, Progress
from smnas_optuna.training.process import evaluate
from smnas_optuna.training.server import preload
from smnas_optuna.recipe.recipe_file import load_recipe

if __name__ == "__main__":
    preload()
    recipe = load_recipe("tiny.yaml", [])
    device = recipe.device.model_copy(update={"gpus_per_trial": 2})
    architecture = Architecture.parse("64x48 ResNet18(w=8) RetinaNet")
    stage, dataset = recipe.structural, open_dataset(recipe.dataset)
    job = Job(architecture, dataset, stage.detector, stage.training, device, Path("trial"), kind="cpu")
    server = psutil.Process(forkserver._forkserver._forkserver_pid)
    listening = set()
    for event in evaluate(job):
        if isinstance(event, Progress):
            for child in server.children(recursive=True):
                listening |= {each.laddr.ip for each in child.net_connections() if each.status == psutil.CONN_LISTEN}
    answer = {"last": type(event).__name__, "reason": getattr(event, "reason", None), "listening": sorted(listening)}
    print(json.dumps(answer | {"server": server.pid, "threads": server.num_threads()}))
"""


def _run(program: str, folder: Path, **environment: str) -> dict[str, Any]:
    (folder / "program.py").write_text(program, encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return answer


def test_several_processes_can_train_although_autograd_starts_threads_for_an_accelerator(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    asked = tmp_path / "asked"
    asked.touch()
    # A part of a GPU (MIG); NVML does not count those, so torch asks CUDA itself.
    answer = _run(PROGRAM, tmp_path, ASKED=str(asked), CUDA_VISIBLE_DEVICES="MIG-1a")
    assert (answer["last"], answer["reason"]) == ("Scores", None)
    # Processes that are forked from the server can use CUDA and autograd.
    assert answer["threads"] == 1
    assert str(answer["server"]) not in asked.read_text(encoding="utf-8").split()
    # They listen on the loopback interface only.
    assert answer["listening"]
    assert set(answer["listening"]) <= {"127.0.0.1", "::1"}


PROBE = """
import json
from pathlib import Path

from smnas_optuna.errors import UserError
from smnas_optuna.training.job import DeviceRequest
from smnas_optuna.training.process import probe, visible_gpus
from smnas_optuna.training.server import preload
from smnas_optuna.recipe.recipe_file import load_recipe

if __name__ == "__main__":
    preload()
    answer = {"gpus": visible_gpus(Path("log"))}
    for kind in ("auto", "cuda"):
        request = DeviceRequest(load_recipe("tiny.yaml", [f"device.kind={kind}"]), "structural")
        try:
            target = probe(request, Path("log"))
            answer[kind] = [target.kind, *target.warnings]
        except UserError as error:
            answer[kind] = str(error)
    print(json.dumps(answer))
"""

NVML = """
int nvmlInit(void) { return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 1; return 0; }
"""


@without_gpu
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_reason_why_torch_cannot_use_a_listed_gpu_is_one_line(tiny_recipe: Path, tmp_path: Path) -> None:
    # A stand-in for NVML lists a GPU, but there is no driver for CUDA, as if the driver were too old.
    (tmp_path / "nvml.c").write_text(NVML, encoding="ascii")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "libnvidia-ml.so.1", "nvml.c"], cwd=tmp_path, check=True)
    answer = _run(PROBE, tmp_path, LD_LIBRARY_PATH=str(tmp_path))
    names, problem = answer["gpus"]
    assert names == []
    assert "driver" in problem
    assert answer["auto"] == ["cpu", f"trains on the CPU, since torch cannot use the GPU: {problem}"]
    assert answer["cuda"] == f"device.kind: found cuda, but {problem}; expected auto or cpu"


@without_gpu
def test_there_is_no_warning_on_a_machine_without_a_gpu(tiny_recipe: Path, tmp_path: Path) -> None:
    preload()
    assert visible_gpus(tmp_path / "log") == ((), "")
    target = probe(DeviceRequest(load_recipe(str(tiny_recipe), ["device.kind=auto"]), "structural"), tmp_path / "log")
    assert (target.kind, target.warnings) == ("cpu", ())


@without_gpu
def test_the_message_about_a_missing_kernel_lists_the_architectures_that_torch_supports() -> None:
    problem = _kernel_problem(0)
    assert problem is not None
    assert problem.startswith("GPU 0: ")
    assert f"(torch {torch.__version__} has kernels for sm_" in problem


@pytest.fixture
def job(tiny_recipe: Path, tmp_path: Path) -> Job:
    recipe = load_recipe(str(tiny_recipe), [])
    stage, dataset = recipe.structural, open_dataset(recipe.dataset)
    architecture = Architecture.parse("64x48 ResNet18(w=8) RetinaNet")
    return Job(architecture, dataset, stage.detector, stage.training, recipe.device, tmp_path / "trial", kind="cpu")


@without_gpu
@pytest.mark.parametrize("processes", [1, 2])
def test_a_search_on_gpus_does_not_continue_on_the_cpu(job: Job, processes: int) -> None:
    preload()
    device = job.device.model_copy(update={"gpus_per_trial": processes})
    failure = list(evaluate(replace(job, device=device, kind="cuda")))[-1]
    assert isinstance(failure, Failure)
    assert failure.outcome is Outcome.INTERRUPTED


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"), Outcome.INTERRUPTED),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), Outcome.INTERRUPTED),
        (torch.distributed.DistBackendError("NCCL error: unhandled system error"), Outcome.INTERRUPTED),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), Outcome.CRASHED),
        (torch.AcceleratorError("CUDA error: out of memory"), Outcome.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), Outcome.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), Outcome.OUT_OF_MEMORY),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), Outcome.OUT_OF_MEMORY),
        (
            RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
            Outcome.OUT_OF_MEMORY,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), Outcome.CRASHED),
    ],
)
def test_a_gpu_fault_interrupts_the_trial_and_out_of_memory_fails_it(
    error: Exception, outcome: Outcome, tmp_path: Path
) -> None:
    failure = failure_of(error, tmp_path)
    assert failure.outcome is outcome
    assert "\n" not in failure.reason
