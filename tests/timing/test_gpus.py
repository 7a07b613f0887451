"""Which GPUs workers and their training processes get."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from smnas_optuna.timing.gpus import announced_searches, assign_gpus, gpu_names

# A process that the user starts, a worker of it, and the worker's trainings. In the end CUDA_VISIBLE_DEVICES changes
# though the server of the training processes runs already, as Ray does it between two tasks of a process.
PROGRAM = """
import os
import sys
from contextlib import closing
from pathlib import Path

from smnas_optuna.parts.architecture import Architecture
from smnas_optuna.data.datasets import open_dataset
from smnas_optuna.timing.gpus import assign_gpus, gpu_names
from smnas_optuna.training.job import Job, UntrainedLatency
from smnas_optuna.training.process import evaluate
from smnas_optuna.training.server import context, preload
from smnas_optuna.recipe.recipe_file import load_recipe


def work(gpus):
    preload()
    train("given", gpus)
    train("seen", None)
    train("none", ())
    os.environ["CUDA_VISIBLE_DEVICES"] = "7"
    train("changed", None)


def train(name, gpus):
    recipe = load_recipe("tiny.yaml", [])
    stage, dataset = recipe.structural, open_dataset(recipe.dataset)
    architecture = Architecture.parse("64x48 ResNet18(w=8) RetinaNet")
    job = Job(architecture, dataset, stage.detector, stage.training, recipe.device, Path(name), kind="cpu", gpus=gpus)
    with closing(evaluate(job)) as events:
        next(event for event in events if isinstance(event, UntrainedLatency))
    os.rename("environment", name + ".txt")


if __name__ == "__main__":
    preload()
    gpus = assign_gpus(gpu_names(os.environ["CUDA_VISIBLE_DEVICES"], 2), 1, None)
    worker = context.Process(target=work, args=(gpus[1],))
    worker.start()
    worker.join()
    sys.exit(worker.exitcode)
"""


@pytest.mark.parametrize(
    ("listed", "count", "names"),
    [
        (None, 2, ("0", "1")),
        (None, 0, ()),
        ("2,3", 2, ("2", "3")),
        ("", 0, ()),
        ("-1", 0, ()),
        ("2, 5", 2, ("2", "5")),
        ("1,-1,0", 1, ("1",)),
        ("0,0", 0, ()),
        ("GPU-1a,GPU-2b", 2, ("GPU-1a", "GPU-2b")),
        ("GPU-1a,GPU-absent", 1, ("GPU-1a",)),
        # CUDA lets a process use only one MIG instance, whatever the count is.
        ("MIG-1a,MIG-2b", 1, ("MIG-1a", "MIG-2b")),
        ("MIG-1a,-1,MIG-2b", 1, ("MIG-1a",)),
        ("MIG-1a,MIG-2b", 0, ()),
    ],
)
def test_gpus_have_the_names_in_cuda_visible_devices(listed: str | None, count: int, names: tuple[str, ...]) -> None:
    assert gpu_names(listed, count) == names


def test_workers_share_gpus_only_if_there_are_too_few() -> None:
    assert assign_gpus(("2", "3", "5", "7"), 1, None) == [("2",), ("3",), ("5",), ("7",)]
    assert assign_gpus(("2", "3", "5"), 2, None) == [("2", "3")]
    assert assign_gpus(("2", "3"), 1, 3) == [("2",), ("3",), ("2",)]
    assert assign_gpus(("2",), 2, 3) == [None, None, None]
    assert assign_gpus((), 1, None) == [None]


def test_a_training_process_sees_the_gpus_of_its_worker_by_the_users_numbers(tiny_recipe: Path, tmp_path: Path) -> None:
    # MMEngine asks the C compiler for its version when a training begins: what that program is given the training has.
    compiler = Path(sysconfig.get_config_var("CC").split()[0]).name
    stand_in = tmp_path / "bin" / compiler
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\nprintenv CUDA_VISIBLE_DEVICES > "{tmp_path}/environment"\necho compiler 1.0\n')
    stand_in.chmod(0o755)
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    environment = {
        **os.environ,
        "PATH": f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "CUDA_VISIBLE_DEVICES": "2,3",
    }
    subprocess.run([sys.executable, "program.py"], cwd=tmp_path, env=environment, check=True)
    seen = {path.stem: path.read_text(encoding="utf-8").strip() for path in tmp_path.glob("*.txt")}
    assert seen == {"given": "3", "seen": "2,3", "changed": "7", "none": ""}


ANNOUNCE = """
import sys

from smnas_optuna.timing.gpus import announce_search

announce_search(sys.argv[1], "work_dirs/mine")
print("announced", flush=True)
sys.stdin.read()
"""


def test_other_searches_on_a_gpu_are_known_until_they_end() -> None:
    gpu = f"GPU-test-{os.getpid()}"
    assert announced_searches(gpu) == []
    program = [sys.executable, "-c", ANNOUNCE, gpu]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        first.stdout.readline()
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as second:
            assert second.stdout is not None
            second.stdout.readline()
            found = announced_searches(gpu)
            assert {(owner.pid, owner.purpose) for owner in found} == {
                (process.pid, "work_dirs/mine") for process in (first, second)
            }
            second.kill()
        assert [owner.pid for owner in announced_searches(gpu)] == [first.pid]
        first.kill()
    assert announced_searches(gpu) == []
