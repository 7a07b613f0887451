"""Cores that a process may run on."""

import os
import subprocess
import sys

import pytest

from smnas_optuna.timing.cores import usable_cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs limits of the system")
def test_only_cores_that_the_system_allows_are_returned() -> None:
    core = max(usable_cores())
    program = (
        "import os, sys; from smnas_optuna.timing.cores import usable_cores;"
        "os.sched_setaffinity(0, {int(sys.argv[1])}); print(usable_cores())"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(core)], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == str({core})
