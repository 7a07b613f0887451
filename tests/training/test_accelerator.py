"""What happens where there is a GPU, as far as stand-ins can show it on a machine without one."""

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
from smnas_optuna.training.job import Failure, Job
from smnas_optuna.training.outcome import Outcome
from smnas_optuna.training.process import evaluate, failure_of, preload

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA GPU")

# Runs in every process, before MMEngine is imported: an accelerator for which autograd starts threads, as for a CUDA
# GPU, and a note of every process that asks CUDA's runtime for its devices, after which it cannot be forked.
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
from smnas_optuna.training.process import evaluate, preload
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
    told = {"last": type(event).__name__, "reason": getattr(event, "reason", None), "listening": sorted(listening)}
    print(json.dumps(told | {"server": server.pid, "threads": server.num_threads()}))
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


def test_several_processes_train_where_autograd_has_threads_for_an_accelerator(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    asked = tmp_path / "asked"
    asked.touch()
    # A part of a GPU; NVML does not count those, so whoever looks for GPUs asks CUDA itself.
    told = _run(PROGRAM, tmp_path, ASKED=str(asked), CUDA_VISIBLE_DEVICES="MIG-1a")
    assert (told["last"], told["reason"]) == ("Scores", None)
    # Processes that are forked from the server can use CUDA and autograd.
    assert told["threads"] == 1
    assert str(told["server"]) not in asked.read_text(encoding="utf-8").split()
    # No other machine can talk to them.
    assert told["listening"]
    assert set(told["listening"]) <= {"127.0.0.1", "::1"}


PROBE = """
import json
from pathlib import Path

from smnas_optuna.errors import UserError
from smnas_optuna.training.job import Demand
from smnas_optuna.training.process import preload, probe, visible_gpus
from smnas_optuna.recipe.recipe_file import load_recipe

if __name__ == "__main__":
    preload()
    told = {"gpus": visible_gpus(Path("log"))}
    for kind in ("auto", "cuda"):
        demand = Demand(load_recipe("tiny.yaml", [f"device.kind={kind}"]), "structural")
        try:
            target = probe(demand, Path("log"))
            told[kind] = [target.kind, target.warning]
        except UserError as error:
            told[kind] = str(error)
    print(json.dumps(told))
"""

NVML = """
int nvmlInit(void) { return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 1; return 0; }
"""


@without_gpu
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_gpu_that_is_listed_but_that_torch_cannot_use_is_told_in_one_line(tiny_recipe: Path, tmp_path: Path) -> None:
    # A library that lists a GPU, without the driver that CUDA needs, as if the driver were too old.
    (tmp_path / "nvml.c").write_text(NVML, encoding="ascii")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "libnvidia-ml.so.1", "nvml.c"], cwd=tmp_path, check=True)
    told = _run(PROBE, tmp_path, LD_LIBRARY_PATH=str(tmp_path))
    names, problem = told["gpus"]
    assert names == []
    assert "driver" in problem
    assert told["auto"] == ["cpu", f"trains on the CPU, since torch cannot use the GPU: {problem}"]
    assert told["cuda"] == f"device.kind: found cuda, but {problem}; expected auto or cpu"


@without_gpu
def test_a_machine_without_a_gpu_is_not_warned_of(tiny_recipe: Path, tmp_path: Path) -> None:
    told = _run(PROBE, tmp_path)
    assert told["gpus"] == [[], ""]
    assert told["auto"] == ["cpu", ""]


@without_gpu
def test_a_kernel_that_does_not_run_is_told_with_what_torch_has_kernels_for() -> None:
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
def test_a_search_on_gpus_does_not_go_on_on_the_cpu(job: Job, processes: int) -> None:
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
def test_a_fault_of_a_gpu_is_not_the_architectures(error: Exception, outcome: Outcome, tmp_path: Path) -> None:
    failure = failure_of(error, tmp_path)
    assert failure.outcome is outcome
    assert "\n" not in failure.reason
