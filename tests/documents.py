"""What a reader of a Markdown document would type: its fenced blocks as steps, one after another.

A block's language says what it is:

* ``sh``, ``shell``, or none: lines of a shell, each a step; a backslash at the end goes on in the next line. A block
  that begins with ``#!`` is a script, one step.
* ``console``: lines of a shell after ``$ ``, each followed by what it prints, if that is shown; ``...`` stands for any
  text there.
* ``python``: a script, one step; or a file, if its first line is ``# NAME``.
* ``yaml``: a Kubernetes job, whose containers' commands are steps, or a file, whose first line is ``# NAME``.
* ``text``: nothing to do, such as a folder's contents or a message.

A command that stands within a paragraph, as ``code``, is a step too, unless a block has it.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

COMMANDS = r"((python -m|pip|make|torchrun|srun|sbatch|ray|optuna-dashboard|source|apt-get|kubectl|git) |export \w+=)"


@dataclass(frozen=True)
class Step:
    """Something to do.

    Args:
        place: ``DOCUMENT:LINE``.
        kind: In which language ``text`` is; a ``file``'s is its content.
        text: What to do.
        shown: What the document says that it prints; None if it does not say.
        name: Of a file.
        is_inline: It stands within a paragraph.
    """

    place: str
    kind: Literal["shell", "python", "file"]
    text: str
    shown: str | None = None
    name: str = ""
    is_inline: bool = False


def steps_of(document: Path) -> list[Step]:
    """Return the steps of a document in its order; raises ValueError for a block that is none of the known kinds."""
    lines = document.read_text(encoding="utf-8").splitlines()
    steps: list[Step] = []
    start: int | None = None
    paragraph: list[str] = []
    for number, line in enumerate([*lines, ""]):
        if start is None and not line.strip():
            steps += _inline_steps(f"{document.name}:{number}", " ".join(paragraph))
            paragraph = []
        if not line.lstrip().startswith("```"):
            if start is None:
                paragraph.append(line)
            continue
        if start is None:
            start = number
            continue
        indent = len(lines[start]) - len(lines[start].lstrip())
        language = lines[start].strip().removeprefix("```")
        block = [each[indent:] for each in lines[start + 1 : number]]
        steps += _steps(f"{document.name}:{start + 2}", language, block)
        start = None
    in_blocks = "\n".join(step.text for step in steps if not step.is_inline)
    return [step for step in steps if not step.is_inline or step.text not in in_blocks]


def _inline_steps(place: str, paragraph: str) -> Iterator[Step]:
    for code in re.findall(r"`([^`]+)`", paragraph):
        text = " ".join(code.split())
        if re.match(COMMANDS, text):
            yield Step(place, "shell", text, is_inline=True)


def _steps(place: str, language: str, block: list[str]) -> Iterator[Step]:
    name, first = place.rsplit(":", 1)
    if language.startswith("{"):  # a directive of Sphinx
        return
    file = re.fullmatch(r"# ([\w./-]+\.(yaml|py))", block[0])
    if file:
        yield Step(place, "file", "\n".join(block) + "\n", name=file[1])
    elif language == "python":
        yield Step(place, "python", "\n".join(block) + "\n")
    elif language == "yaml":
        yield from _yaml_steps(place, block)
    elif language in ("", "sh") and block[0].startswith("#!"):
        yield Step(place, "shell", "\n".join(block))
    elif language in ("", "sh", "shell", "console"):
        yield from _shell_steps(name, int(first), block, is_session=language == "console" or block[0].startswith("$ "))
    elif language == "text":
        typed = [line for line in block if re.match(rf"(\$ )?{COMMANDS}", line)]
        if typed:
            raise ValueError(f"{place}: a block of text has a command: {typed[0]}")
    else:
        raise ValueError(f"{place}: a block of {language!r}, which nobody tests")


def _shell_steps(document: str, first: int, block: list[str], *, is_session: bool) -> Iterator[Step]:
    command, printed, place = "", list[str](), ""
    is_open = False
    for number, line in enumerate([*block, "$ " if is_session else ""], first):
        if is_open:
            command += "\n" + line.removeprefix("> ")
        elif is_session and not line.startswith("$ "):
            printed.append(line)
            continue
        else:
            if command.strip() and not command.startswith("#"):
                yield Step(place, "shell", command, "\n".join(printed) or None)
            command, printed, place = line.removeprefix("$ ") if is_session else line, [], f"{document}:{number}"
        is_open = command.endswith("\\")
    if command.strip():
        raise ValueError(f"{place}: the block ends within a line")


def _yaml_steps(place: str, block: list[str]) -> Iterator[Step]:
    job: dict[str, Any] = yaml.safe_load("\n".join(block))
    for container in job["spec"]["template"]["spec"]["containers"]:
        secrets = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in container["env"]}
        variables = [f'{variable}="<secret {ref["name"]}/{ref["key"]}>"' for variable, ref in secrets.items()]
        yield Step(place, "shell", " ".join([*variables, shlex.join(container["command"])]))
