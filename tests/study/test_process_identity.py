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


def test_an_identity_is_read_as_it_was_written() -> None:
    identity = ProcessIdentity.current()
    assert ProcessIdentity.parse(str(identity)) == identity
    assert ProcessIdentity.current() == identity
    assert identity.is_alive() is True


def test_the_form_of_earlier_versions_says_nothing() -> None:
    assert ProcessIdentity.parse("host:17:1790000000.25") is None
    assert ProcessIdentity.parse("None") is None


def test_a_process_is_alive_until_it_has_ended_though_its_parent_has_not_noticed() -> None:
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


def test_the_start_is_counted_from_boot_so_that_a_clock_that_is_set_does_not_move_it() -> None:
    here = ProcessIdentity.current()
    assert here.start == Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    assert here.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_a_process_number_that_another_process_has_now_is_not_alive() -> None:
    here = ProcessIdentity.current()
    assert replace(here, start=str(int(here.start) - 1)).is_alive() is False


def test_nothing_is_known_of_another_boot_or_machine() -> None:
    assert replace(ProcessIdentity.current(), boot="another", pid=2**22 + 1).is_alive() is None


@pytest.mark.parametrize("pid", [1, 2**22 + 1], ids=["another process has this number here", "nobody has it here"])
def test_nothing_is_known_of_a_container_with_the_same_host_name(pid: int) -> None:
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
