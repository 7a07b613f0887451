"""Every command, script and file of the documents is tried, one after another, as a reader would.

``make test`` tries those that every reader follows, and of the others that there are such commands and options.

What differs from a reader's machine: ``tests/stand_ins.py`` says which programs stand in for what, ``PLACEHOLDERS``
what is put where a document has a name of the reader's own, and the fixture ``world`` which data there are.
"""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest
from PIL import Image
from typer.exceptions import TyperException

from smnas_optuna.command_line import build_parser
from smnas_optuna.data.digits import make_digits
from smnas_optuna.recipe.recipe_file import load_recipe
from tests import stand_ins
from tests.commands import run
from tests.data_folders import read_coco, write_yolo
from tests.documents import Step, steps_of
from tests.labelled_digits import make_labelled_digits
from tests.published_formats import Thing, write_voc
from tests.ray_cluster import ray_cluster
from tests.servers import PostgreSQL
from tests.stand_ins import ROOT

DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in ("build", "dist") for part in path.relative_to(ROOT).parts)
    and steps_of(path)
)
# Before these, their reader has searched.
AFTER_A_SEARCH = ("reading_results.md", "training_the_winner.md")
SEARCH = Step("before", "shell", "python -m smnas_optuna.run_study coco --stage all --quiet")
SECONDS = 300
# A text of the package with fewer letters of its own is no message.
LEAST_LETTERS = 12


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few images in the layouts of the data sets that the documents name."""
    folder = tmp_path_factory.mktemp("world")
    digits = make_digits(2, 8, 4, width=64, height=48)
    coco, mine = folder / "data" / "coco", folder / "mine"
    (coco / "annotations").mkdir(parents=True)
    (mine / "images").mkdir(parents=True)
    for name in ("train", "val"):
        shutil.copytree(digits / name, coco / f"{name}2017")
        shutil.copy(digits / f"{name}.json", coco / "annotations" / f"instances_{name}2017.json")
        content = json.loads((digits / f"{name}.json").read_text(encoding="utf-8"))
        for image in content["images"]:
            own = f"{name}_{image['file_name']}"
            shutil.copy(digits / name / image["file_name"], mine / "images" / own)
            image["file_name"] = own
        (mine / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    things = [Thing("car", (5, 5, 30, 30)), Thing("person", (20, 10, 60, 45))]
    for image_set in ("VOC2007/trainval", "VOC2012/trainval", "VOC2007/test"):
        write_voc(folder / "data" / "VOCdevkit", image_set, {f"{number:06}": things for number in range(4)})
    splits = {name: Path(f"{name}.json") for name in ("train", "val")}
    write_yolo(folder / "photos", read_coco(digits, splits, lambda part: digits / part))
    make_labelled_digits(folder / "data" / "imagenet")
    Image.open(next((digits / "val").iterdir())).convert("RGB").save(folder / "image.jpg")
    stand_ins.install(folder / "programs")
    return folder


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """Where a Ray cluster runs."""
    with ray_cluster(cores=1) as cluster:
        yield cluster.address


class Reader:
    """Follows a document in a folder, which is the home as well; what a step exports is there for the next.

    Args:
        folder: With the programs that stand in for others.
        temporary: Folder for temporary files. In it is the device's lock, for which trials of other tests would be
            waited; its name is short, as those of sockets have to be.
        placeholders: What to put for the names in a document that are a reader's own.
    """

    def __init__(self, folder: Path, temporary: str, placeholders: dict[str, str]) -> None:
        self._folder = folder
        self._placeholders = placeholders
        self._state = folder / ".reader"
        self._commands = folder / ".commands"
        self._commands.mkdir()
        exports = f'export HOME="{folder}" TMPDIR="{temporary}" PATH="{folder}/programs:$PATH" COLUMNS=120'
        self._state.write_text(f'cd "{folder}"\n{exports}\nunset SMNAS_STORAGE\n', encoding="utf-8")

    def follow(self, step: Step) -> str:
        """Take a step, and return what it prints; fails unless it succeeds."""
        text = step.text
        for name, own in self._placeholders.items():
            text = text.replace(name, own)
        if step.kind == "file":
            text = f"cat > {step.name} <<'END OF FILE'\n{text}END OF FILE"
        if step.kind == "python":
            (self._folder / "step.py").write_text(text, encoding="utf-8")
            text = f'python "{self._folder}/step.py"'
        remember = f'{{ export -p; echo "cd \\"$PWD\\""; }} > "{self._state}"'
        ended = subprocess.run(
            [
                "bash",
                "-c",
                f'source "{self._state}"\nset -e\n{self._put_off}\n{text}\nunset -f python srun\n{remember}',
            ],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert ended.returncode == 0, f"{step.place}: {step.text}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout + "".join(self._run(step, folder) for folder in sorted(self._commands.iterdir()))

    @property
    def _put_off(self) -> str:
        """Shell's function ``python``, which writes down a command of the package instead of running it."""
        return f"""srun() {{ "$@"; }}
        python() {{
            case "$1 $2" in
            "-m smnas_optuna."*)
                local folder="{self._commands}/$(ls "{self._commands}" | wc -l)"
                mkdir "$folder"; pwd > "$folder/folder"; env -0 > "$folder/environment"
                printf "%s\\0" "${{@:2}}" > "$folder/arguments";;
            *) command python "$@";;
            esac
        }}"""

    def _run(self, step: Step, command: Path) -> str:
        """Run a command of the package that was written down; in this process, which has loaded what it needs."""
        module, *arguments = (command / "arguments").read_text(encoding="utf-8").split("\0")[:-1]
        name = module.removeprefix("smnas_optuna.")
        variables = (command / "environment").read_text(encoding="utf-8").split("\0")[:-1]
        # This process has chosen its folder for temporary files.
        variables = [variable for variable in variables if not variable.startswith("TMPDIR=")]
        folder = Path((command / "folder").read_text(encoding="utf-8").strip())
        shutil.rmtree(command)
        with mock.patch.dict(os.environ, dict(variable.split("=", 1) for variable in variables), clear=True):
            ended = run(name, *stand_ins.tried(name, arguments), folder=folder)
        assert ended.returncode == 0, f"{step.place}: {step.text}\n{ended.stdout}\n{ended.stderr}"
        if name == "export":
            stand_ins.shorten(folder, arguments)
        return ended.stdout


@pytest.fixture
def reader(
    document: Path, world: Path, postgresql: PostgreSQL, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Reader]:
    """Follows a document in a home of its own."""
    home = shutil.copytree(world, tmp_path / "home")
    for file in document.parent.glob("requirements.txt"):
        shutil.copy(file, home)
    url = postgresql.create_database()
    placeholders = {
        "REPOSITORY": str(ROOT),
        "COMMAND": "complexity R50",
        "RECIPE": "coco",
        "/path/to/data": f"{home}/mine",
        "/shared/": f"{home}/shared/",
        "postgresql+psycopg://smnas:PASSWORD@db.example.org/smnas": url,
        "<secret smnas/storage>": url,
        # It is not in OptunaHub's registry yet.
        'load_module("samplers/': f'load_local_module(registry_root="{ROOT}", package="samplers/',
    }
    if "--ray-address auto" in document.read_text(encoding="utf-8"):
        placeholders["--ray-address auto"] = f"--ray-address {request.getfixturevalue('ray_address')}"
    with tempfile.TemporaryDirectory(prefix="reader-") as temporary:
        yield Reader(home, temporary, placeholders)


def _long(document: Path) -> list[pytest.MarkDecorator]:
    """Return the mark of all documents but those that every reader follows."""
    return [] if document.name in ("README.md", "many_workers.md") else [pytest.mark.long]


@pytest.mark.takes_minutes
@pytest.mark.parametrize(
    "document",
    [pytest.param(document, id=str(document.relative_to(ROOT)), marks=_long(document)) for document in DOCUMENTS],
)
def test_what_a_document_tells_to_do_can_be_done(document: Path, reader: Reader) -> None:
    steps = steps_of(document)
    for step in [SEARCH, *steps] if document.name in AFTER_A_SEARCH else steps:
        printed = reader.follow(step)
        if step.shown:
            assert is_shown(printed, step.shown), f"{step.place}: {step.text}\n{printed}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_every_command_of_a_document_has_the_options_that_it_is_given(document: Path) -> None:
    for step in steps_of(document):
        for module, arguments in commands_in(step):
            function = getattr(import_module(f"smnas_optuna.{module}"), module)
            try:
                context = build_parser(function).make_context(module, arguments)
            except TyperException as error:
                pytest.fail(f"{step.place}: {step.text}\n{error.format_message()}")
            shipped = ROOT / "studies" / f"{context.params.get('recipe')}.yaml"
            if shipped.exists():
                load_recipe(shipped.stem, context.params.get("overrides") or ())


def commands_in(step: Step) -> Iterator[tuple[str, list[str]]]:
    """Yield the package's commands in a step of a shell, each with its arguments."""
    for line in step.text.replace("\\\n", " ").splitlines() if step.kind == "shell" else ():
        for module, arguments in re.findall(r"-m smnas_optuna\.([a-z_]+)([^;|>]*)", line):
            yield module, shlex.split(arguments, comments=True)


def is_shown(printed: str, shown: str) -> bool:
    """Tell whether a document shows what was printed, with ``...`` for any text."""
    lines = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    pattern = ".*".join(re.escape(part) for part in shown.strip().split("..."))
    return re.fullmatch(pattern, lines, re.DOTALL) is not None


def test_only_what_was_printed_is_taken_for_shown() -> None:
    assert is_shown("study a: 3 architectures\nmore\n", "study a: ... architectures\n...")
    assert not is_shown("study a: 3 architectures\n", "study b: ... architectures")
    assert not is_shown("one\ntwo\n", "one")


def test_a_command_that_fails_is_no_step_that_can_be_done(world: Path, tmp_path: Path) -> None:
    reader = Reader(shutil.copytree(world, tmp_path / "home"), tempfile.gettempdir(), {})
    with pytest.raises(AssertionError, match="no such file, and the shipped recipes are"):
        reader.follow(Step("here:1", "shell", "python -m smnas_optuna.check_data nothing"))


def messages_of_the_package() -> list[re.Pattern[str]]:
    """Return every text in the package's sources that says something, as a pattern of what may be put in."""
    patterns = []
    for source in (ROOT / "smnas_optuna").rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            own = [str(part.value) if isinstance(part, ast.Constant) else None for part in parts]
            if sum(len(part or "") for part in own) >= LEAST_LETTERS:
                patterns.append(re.compile(".*".join(re.escape(part) if part else "" for part in own)))
    return patterns


def test_every_error_that_the_faq_explains_is_one_that_the_package_tells() -> None:
    faq = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    explained = re.findall(r"^```text\n(.+)\n```$", faq, re.MULTILINE)
    assert len(explained) > 20
    told = messages_of_the_package()
    assert not [message for message in explained if not any(text.search(message) for text in told)]
    assert not [text for text in told if text.search("study ...: cannot be read in the dark")]
