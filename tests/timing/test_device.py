"""What may change a time on a device."""

import os
from pathlib import Path

import pytest
import torch

from smnas_optuna.timing.device import conditions, gpu_uuid

# As nvidia-smi 570 prints it, of three GPUs of one machine.
ANSWER = """\
GPU-5a1c9d3e-0d5f-3d9a-8c1e-2b7f4a6d8e01, 570.86.15, 700.00 W
GPU-8932f937-d72c-4106-c12f-20bd9faed9f6, 570.86.15, 500.00 W
GPU-b7e0f4c2-1a39-4e7d-93c8-6f5d2e1b0a94, 570.86.15, [N/A]
"""
FIRST, SECOND, THIRD = (line.split(",")[0] for line in ANSWER.splitlines())


@pytest.fixture(autouse=True)
def _nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only part that a machine without a GPU lacks."""
    query = "--query-gpu=uuid,driver_version,power.limit --format=csv,noheader"
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\n[ "$*" = "{query}" ] || exit 2\ncat << END\n{ANSWER}END\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("gpus", "limit"),
    [
        ([FIRST], "700.00 W"),
        ([SECOND], "500.00 W"),
        ([THIRD], "[N/A]"),
        ([SECOND, SECOND], "500.00 W"),
        ([SECOND, FIRST], "500.00 W, 700.00 W"),
    ],
)
def test_conditions_are_those_of_the_gpus_in_use(gpus: list[str], limit: str) -> None:
    found = conditions("cuda", gpus)
    assert (found["driver"], found["power limit"]) == ("570.86.15", limit)


def test_a_mig_instance_has_no_power_limit() -> None:
    found = conditions("cuda", ["MIG-c9dd5b6f-5f1f-5a0a-8e57-0c3e1a6b7d21"])
    assert found["driver"] == "570.86.15"
    assert "power limit" not in found


def test_a_cpu_has_no_conditions_of_a_gpu() -> None:
    assert set(conditions("cpu")) == {"torch", "precision", "layers"}


@pytest.mark.parametrize(
    ("convolutions", "matrices", "expected"),
    [
        (True, False, "convolutions"),
        (True, True, "convolutions and matrices"),
        (False, True, "matrices"),
        (False, False, "off"),
    ],
)
def test_the_conditions_say_where_tensorfloat_32_is_used(
    convolutions: bool, matrices: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = torch.backends.cuda.matmul.allow_tf32
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", convolutions)
    try:
        torch.backends.cuda.matmul.allow_tf32 = matrices
        found = conditions("cuda", [FIRST])
    finally:
        torch.backends.cuda.matmul.allow_tf32 = former
    assert (found["precision"], found["TF32"]) == ("float32", expected)


def test_the_conditions_say_that_standardised_weights_are_constants() -> None:
    assert conditions("cpu", standardized=True)["standardised weights"] == "folded"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_is_named_as_nvidia_smi_names_it() -> None:
    assert len(gpu_uuid(0)) == len(FIRST)
