"""What the documents' commands are run with where the real thing would take days, a cluster or a network.

A folder of programs with the names below comes first on the path. Each does what the real one does, but for this:

* ``python``: the shipped recipes' stages, data made on the spot and device are tiny ones (see ``TINY``), and at most
  ``MOST_TRIALS`` trials are asked for, also of a search with a budget, but a dry run is the real one; a pre-training
  is short; an exported config trains for one epoch; an environment that is made has these programs. What the document
  itself says with ``--set`` comes after, so it is checked and wins. Of a benchmark, which takes minutes, it is seen
  that it is there.
* ``torchrun``: two processes at most, and no ``--amp``, which needs a GPU.
* ``optuna-dashboard``: the real one, on a free port of this machine; it ends once its page has come.
* ``make``: ``demo`` and ``dashboard`` are run, in the folder of the document and without installing; of the other
  targets, which change the checkout or are the tests themselves, it is seen that they are there.
* ``pip`` and ``apt-get``: options are checked, and what is to be installed is looked up in ``pyproject.toml``.
* ``srun``: runs the command here.
"""

import argparse
import copy
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import yaml
from packaging.requirements import Requirement

from tests.commands import free_port
from tests.conftest import TINY

ROOT = Path(__file__).parent.parent
MOST_TRIALS = 2
_SEEDS = [
    "64x48 ResNet18(w=8) FPN(P2-P4,c=16) RPN 2FC",
    "64x48 MobileNetV2(w=8) FPN(P2-P4,c=16) RetinaNet",
]
_TINY_PLAN = [
    *(
        "--set",
        "structural.training.epochs=1",
        "--set",
        "structural.space.heads=[ATSS, 2FC]",
        "--set",
        "structural.seeds=[]",
    ),
    *("--set", "final={epochs: 1, repeats: 0}"),
    *("--set", "structural.detector.fc_channels=16", "--set", "device.timing={images: 2, warmup: 1, rounds: 2}"),
]
_QUICK_PRETRAINING = ("--epochs", "1", "--batch-size", "8", "--input", "32", "--workers", "0")


def install(folder: Path) -> None:
    """Write the programs to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _PROGRAMS:
        program = folder / name
        program.unlink(missing_ok=True)
        line = shlex.join([sys.executable, __file__, str(program)])
        program.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {line} "$@"\n', encoding="utf-8")
        program.chmod(0o755)


def _python(arguments: list[str], _: Path) -> NoReturn:
    module = arguments[1].removeprefix("smnas_optuna.") if arguments[:1] == ["-m"] else None
    if module == "venv":
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", *arguments[2:]], check=True)
        install(Path(arguments[-1]) / "bin")
        sys.exit()
    if module and module.startswith("benchmarks."):
        os.chdir(ROOT)
        arguments = ["-c", f"import importlib.util; assert importlib.util.find_spec({module!r})"]
    elif module:
        arguments = ["-m", arguments[1], *tried(module, arguments[2:])]
    if module == "export":
        code = subprocess.run([sys.executable, *arguments], check=False).returncode
        shorten(Path.cwd(), arguments)
        sys.exit(code)
    os.execv(sys.executable, [sys.executable, *arguments])


def tried(command: str, arguments: list[str]) -> list[str]:
    """Return the arguments with which a command of the package is tried, instead of those of a document."""
    if command in ("run_study", "check_data") and "--dry-run" not in arguments:
        return [arguments[0], *_tiny_settings(arguments[0]), *_few_trials(arguments[1:])]
    return [*arguments, *_QUICK_PRETRAINING] if command == "pretrain" else arguments


def shorten(folder: Path, arguments: list[str]) -> None:
    """Let a config that ``export`` has written train for one epoch."""
    output = folder / arguments[arguments.index("--output") + 1]
    if output.suffix == ".py" and output.exists():
        config = output.read_text(encoding="utf-8")
        output.write_text(re.sub(r"max_epochs=\d+", "max_epochs=1", config), encoding="utf-8")


def _tiny_settings(recipe: str) -> list[str]:
    """Return the options that make a shipped recipe tiny, in the sections that it has, or the plan for a folder."""
    if recipe == "photos/":
        return _TINY_PLAN
    shipped = ROOT / "studies" / f"{recipe}.yaml"
    if not shipped.exists():
        return []
    content = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    tiny: dict[str, Any] = copy.deepcopy(TINY)
    tiny["structural"] |= {"trials": MOST_TRIALS, "seeds": _SEEDS}
    tiny["modular"]["candidates"] = 1
    tiny["device"]["timing"]["attempts"] = 1
    sections = [name for name in ("structural", "modular", "transfer", "device") if name in content]
    if content["dataset"]["kind"] == "digits":
        sections.append("dataset")
    return [part for name in sections for part in ("--set", f"{name}={yaml.safe_dump(tiny[name])}")]


def _few_trials(arguments: list[str]) -> list[str]:
    if "--n-trials" in arguments:
        place = arguments.index("--n-trials") + 1
        arguments[place] = str(min(int(arguments[place]), MOST_TRIALS))
    elif "--budget" in arguments:
        arguments += ["--n-trials", str(MOST_TRIALS)]
    return arguments


def _torchrun(arguments: list[str], _: Path) -> NoReturn:
    place = arguments.index("--nproc-per-node") + 1
    arguments[place] = str(min(int(arguments[place]), 2))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    if arguments[place + 1 : place + 3] == ["-m", "smnas_optuna.pretrain"]:
        arguments = [*arguments, *_QUICK_PRETRAINING]
        arguments = [argument for argument in arguments if argument != "--amp"]
    os.execv(sys.executable, [*launcher, *arguments])


def _optuna_dashboard(arguments: list[str], _: Path) -> None:
    port = free_port()
    program = Path(sys.executable).with_name("optuna-dashboard")
    address = f"http://127.0.0.1:{port}/dashboard"
    options = [*arguments, "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen([str(program), *options], stderr=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None:
                try:
                    with urllib.request.urlopen(address, timeout=10) as page:
                        assert b"Optuna Dashboard" in page.read()
                    return
                except urllib.error.URLError:
                    time.sleep(0.1)
            sys.exit(process.returncode or 1)
        finally:
            process.terminate()


def _make(arguments: list[str], folder: Path) -> NoReturn:
    (target,) = arguments
    makefile = ROOT / "Makefile"
    stamps = re.findall(r"^(\.venv/[\w-]+):", makefile.read_text(encoding="utf-8"), re.MULTILINE)
    is_installed = [f"--assume-old={stamp}" for stamp in stamps]
    if target == "demo":
        subprocess.run([str(folder / "python"), "-m", "venv", ".venv"], check=True)
    only_shown = [] if target in ("demo", "dashboard") else ["--dry-run"]
    real = shutil.which("make", path=os.defpath)
    assert real is not None
    os.execv(real, ["make", f"--file={makefile}", f"BIN={folder}", *is_installed, *only_shown, target])


def _pip(arguments: list[str], _: Path) -> None:
    parser = argparse.ArgumentParser(prog="pip", allow_abbrev=False)
    parser.add_argument("command", choices=["install", "wheel"])
    parser.add_argument("requirements", nargs="*")
    parser.add_argument("-r", "--requirement", type=Path)
    parser.add_argument("--index-url")
    parser.add_argument("--no-index", action="store_true")
    parser.add_argument("--find-links")
    parser.add_argument("--wheel-dir")
    options = parser.parse_intermixed_args(arguments)
    wanted = list(options.requirements)
    if options.requirement:
        wanted += options.requirement.read_text(encoding="utf-8").split()
    assert wanted, "nothing to install"
    # As text, since Python has a reader of TOML from 3.11 on only.
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for text in wanted:
        requirement = Requirement(re.sub(r"^\.", "smnas_optuna", text))
        assert re.search(rf'"{requirement.name}["\[<>=]', project), f"{requirement.name} is no dependency"
        if requirement.name == "smnas_optuna":
            unknown = [extra for extra in requirement.extras if not re.search(rf"^{extra} = \[", project, re.MULTILINE)]
            assert not unknown, f"there is no extra {unknown}"


def _apt_get(arguments: list[str], _: Path) -> None:
    action, *packages = [argument for argument in arguments if argument != "--yes"]
    assert action in ("update", "install")
    assert bool(packages) == (action == "install")
    assert not [package for package in packages if package.startswith("-")]


def _srun(arguments: list[str], _: Path) -> NoReturn:
    os.execvp(arguments[0], arguments)


_PROGRAMS: dict[str, Callable[[list[str], Path], None]] = {
    "python": _python,
    "torchrun": _torchrun,
    "optuna-dashboard": _optuna_dashboard,
    "make": _make,
    "pip": _pip,
    "apt-get": _apt_get,
    "srun": _srun,
}

if __name__ == "__main__":
    del os.environ["PYTHONPATH"]  # which these programs alone need
    called = Path(sys.argv[1])
    _PROGRAMS[called.name](sys.argv[2:], called.parent)
