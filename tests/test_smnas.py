"""The console script: all commands as subcommands, and shell completion."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from smnas_optuna.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent


def smnas(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "smnas_optuna", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_command_is_a_subcommand() -> None:
    modules = {path.stem for path in (ROOT / "smnas_optuna").glob("*.py")} - {"__init__", "__main__"}
    modules |= {path.parent.name for path in (ROOT / "smnas_optuna").glob("*/__main__.py")}
    assert set(COMMANDS) == modules - {"errors", "command_line"}
    for name in COMMANDS:
        assert callable(getattr(import_module(f"smnas_optuna.{name}"), name))


def test_the_help_names_all_commands_without_importing_them(tmp_path: Path) -> None:
    shown = smnas("--help", folder=tmp_path)
    assert shown.returncode == 0
    assert shown.stdout.startswith("Usage: smnas [OPTIONS] COMMAND [ARGS]...")
    for name in COMMANDS:
        assert f"  {name}" in shown.stdout
    assert "--install-completion" in shown.stdout


def test_a_subcommand_is_the_command(tmp_path: Path) -> None:
    counted = smnas("complexity", "R50", "--input", "800x600", "--json", folder=tmp_path)
    assert counted.returncode == 0, counted.stderr
    assert '"params"' in counted.stdout
    usage = smnas("run-study", "--help", folder=tmp_path)
    assert usage.stdout.startswith("Usage: smnas run-study [OPTIONS] ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serach"], "error: No such command 'serach'.\n"),
        (["check_data", "absent"], "error: recipe 'absent': no such file, and the shipped recipes are "),
        (["check_data", ".", "--imagse", "name"], "error: No such option: --imagse"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    ended = smnas(*arguments, folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith(message), ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_shell_completes_commands_and_options(tmp_path: Path) -> None:
    for words, expected in (("smnas che", "check_data"), ("smnas run_study --bud", "--budget")):
        found = smnas(
            folder=tmp_path,
            _SMNAS_COMPLETE="complete_bash",
            COMP_WORDS=words,
            COMP_CWORD=str(len(words.split()) - 1),
        )
        assert found.stdout.split() == [expected], found.stderr


def test_the_package_has_the_script() -> None:
    # As text, since Python has a reader of TOML from 3.11 on only.
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.scripts]\nsmnas = "smnas_optuna.__main__:main"\n' in project
