"""Servers and signals on a machine that has never run the tests, or runs them in the background."""

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

START = """
import sys
from tests.servers import PostgreSQL
print("ready", flush=True)
sys.stdin.read()
server = PostgreSQL()
print(server.create_database())
server.close()
"""


@pytest.fixture
def fresh_machine(tmp_path: Path) -> list[str]:
    """A command prefix that runs programs where the servers' system user does not exist.

    They see a copy of /etc in a mount namespace of their own; the machine's own users stay as they are.
    """
    if os.geteuid() != 0:
        pytest.skip("servers run as a user of their own only where the tests run as root")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mount namespaces are not permitted here")
    etc = tmp_path / "etc"
    shutil.copytree("/etc", etc, symlinks=True)
    for name in ("passwd", "shadow", "group", "gshadow", "subuid", "subgid"):
        file = etc / name
        if file.exists():
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            file.write_text("".join(line for line in lines if not line.startswith("pgserver:")), encoding="utf-8")
    return ["unshare", "--mount", "sh", "-c", f'mount --bind {etc} /etc && exec "$@"', "sh"]


def test_servers_that_start_at_once_on_a_fresh_machine_share_one_system_user(fresh_machine: list[str]) -> None:
    with ExitStack() as stack:
        starters = [
            stack.enter_context(
                subprocess.Popen(
                    [*fresh_machine, sys.executable, "-c", START],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(3)
        ]
        for starter in starters:
            assert starter.stdout is not None
            assert starter.stdout.readline() == "ready\n"
        for starter in starters:
            assert starter.stdin is not None
            starter.stdin.close()
        for starter in starters:
            starter.stdin = None
            output, errors = starter.communicate(timeout=120)
            assert starter.returncode == 0, errors
            assert output.startswith("postgresql+psycopg://")


def test_interrupts_are_tested_also_where_the_caller_ignores_them() -> None:
    file = Path(__file__).with_name("test_command_line.py")
    test = f"{file}::test_an_interrupted_command_exits_with_130_and_no_traceback"
    run_test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]
    ended = subprocess.run([*ignoring, *run_test], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout
