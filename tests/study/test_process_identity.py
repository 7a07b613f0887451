import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from smnas_optuna.study.process_identity import ProcessIdentity

_TELL = """
import sys
from smnas_optuna.study.process_identity import ProcessIdentity
print(ProcessIdentity.current(), flush=True)
sys.stdin.readline()
"""


def start(*prefix: str) -> tuple["subprocess.Popen[str]", ProcessIdentity]:
    """Start a process that tells its identity and lives until its input ends."""
    command = [*prefix, sys.executable, "-c", _TELL]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    identity = ProcessIdentity.parse(process.stdout.readline().strip())
    assert identity is not None
    return process, identity


def test_parsing_the_text_of_an_identity_returns_the_identity() -> None:
    identity = ProcessIdentity.current()
    assert ProcessIdentity.parse(str(identity)) == identity
    assert ProcessIdentity.current() == identity
    assert identity.is_alive() is True


def test_the_text_of_former_versions_is_no_identity() -> None:
    assert ProcessIdentity.parse("host:17:1790000000.25") is None
    assert ProcessIdentity.parse("None") is None


def test_a_process_that_has_ended_is_not_alive_even_if_its_parent_has_not_reaped_it() -> None:
    process, identity = start()
    assert identity.pid == process.pid
    assert identity.is_alive() is True
    assert process.stdin is not None
    process.stdin.close()
    assert process.stdout is not None
    process.stdout.read()  # to its end, which is the process's
    while identity.is_alive():
        pass  # its output is closed a moment before it ends
    assert Path(f"/proc/{process.pid}").exists()
    assert identity.is_alive() is False
    process.wait()
    assert identity.is_alive() is False


def test_the_start_time_is_counted_from_boot_in_clock_ticks() -> None:
    here = ProcessIdentity.current()
    assert here.start == Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    assert here.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_a_process_whose_number_another_process_has_now_is_not_alive() -> None:
    here = ProcessIdentity.current()
    assert replace(here, start=str(int(here.start) - 1)).is_alive() is False


def test_whether_a_process_of_another_boot_or_machine_is_alive_is_unknown() -> None:
    assert replace(ProcessIdentity.current(), boot="another", pid=2**22 + 1).is_alive() is None


@pytest.mark.parametrize("pid", [1, 2**22 + 1], ids=["another process has this number here", "nobody has it here"])
def test_whether_a_process_of_another_container_with_the_same_host_name_is_alive_is_unknown(pid: int) -> None:
    container = ("unshare", "--pid", "--fork", "--mount-proc")
    if subprocess.run([*container, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no namespaces of process numbers")
    process, identity = start(*container)
    here = ProcessIdentity.current()
    assert (identity.host, identity.boot) == (here.host, here.boot)
    assert identity.pid == 1
    assert replace(identity, pid=pid).is_alive() is None
    process.communicate("")
    assert process.returncode == 0
    assert replace(identity, pid=pid).is_alive() is None
