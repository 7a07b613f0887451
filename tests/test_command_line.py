import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = '''
import sys
import time
from typing import Annotated, Literal

import typer

from smnas_optuna.command_line import run_command
from smnas_optuna.errors import UserError


def act(
    what: str,
    number: Annotated[int, typer.Option(min=0)] = 1,
    tags: Annotated[list[str] | None, typer.Option("--set")] = None,
    stage: Literal["structural", "modular"] = "structural",
) -> None:
    """Do something."""
    if what == "mistake":
        raise UserError("cells.yaml:3: found 'x',\\n   expected 'y'")
    if what == "defect":
        raise RuntimeError("out of order")
    if what == "value":
        raise ValueError("not a user's mistake")
    if what == "leave":
        raise typer.Exit(1)
    if what == "abort":
        raise typer.Abort
    if what == "wait":
        print("waiting", flush=True)
        time.sleep(60)
    print(what, number, tags)


run_command(act, "act")
'''


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "act.py"
    path.write_text(PROGRAM, encoding="utf-8")
    return path


def run(program: Path, *arguments: str) -> tuple[int, str, str]:
    """Return the exit code, standard output and standard error."""
    done = subprocess.run(
        [sys.executable, program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_a_command_that_is_done_exits_with_0(program: Path) -> None:
    assert run(program, "x", "--set", "a=1", "--set", "b=2", "--number", "3") == (0, "x 3 ['a=1', 'b=2']\n", "")


def test_help_calls_the_command_as_it_is_called(program: Path) -> None:
    code, output, errors = run(program, "--help")
    assert (code, errors) == (0, "")
    assert "python -m smnas_optuna.act" in output
    assert "Do something." in output


@pytest.mark.parametrize("what", ["defect", "value"])
def test_a_failed_run_exits_with_1_and_its_traceback(program: Path, what: str) -> None:
    code, output, errors = run(program, what)
    assert (code, output) == (1, "")
    assert errors.startswith("Traceback (most recent call last):")
    assert errors.splitlines()[-1] in ("RuntimeError: out of order", "ValueError: not a user's mistake")


def test_a_command_may_leave_with_a_code_of_its_own(program: Path) -> None:
    assert run(program, "leave") == (1, "", "")


def test_a_users_mistake_exits_with_2_and_one_line(program: Path) -> None:
    assert run(program, "mistake") == (2, "", "error: cells.yaml:3: found 'x', expected 'y'\n")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "what"),
        (("x", "y"), "y"),
        (("x", "--nmber", "3"), "--nmber"),
        (("x", "--number"), "--number"),
        (("x", "--number", "three"), "--number"),
        (("x", "--number", "-1"), "--number"),
    ],
)
def test_bad_usage_exits_with_2_and_one_line_that_names_it(
    program: Path, arguments: tuple[str, ...], named: str
) -> None:
    code, output, errors = run(program, *arguments)
    assert (code, output) == (2, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert named.lower() in errors.lower()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--stage", "third", "--stage: 'third' is not one of 'structural', 'modular'."),
        ("--number", "three", "--number: found 'three', expected a valid integer"),
        ("--number", "-1", "--number: found '-1', expected greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_told_with_the_option_what_was_found_and_what_was_expected(
    program: Path, option: str, value: str, message: str
) -> None:
    assert run(program, "x", option, value) == (2, "", f"error: {message}\n")


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_command_exits_with_130_and_no_traceback(program: Path) -> None:
    with subprocess.Popen(
        [sys.executable, program, "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in output + errors


def test_an_aborted_command_exits_with_130(program: Path) -> None:
    assert run(program, "abort")[0] == 130
