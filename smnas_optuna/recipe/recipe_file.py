"""Reads a recipe from YAML, with errors that name line and key."""

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from smnas_optuna.errors import UserError, explain
from smnas_optuna.parts.section import Section
from smnas_optuna.recipe.recipe import Recipe
from smnas_optuna.recipe.settings import Dataset


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that are part of the package, sorted."""
    folder = resources.files("smnas_optuna") / "studies"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        recipe: A path to a YAML file, or the name of a shipped recipe.
        overrides: Values that replace those of the file: ``key.path=value`` each, the value in YAML.

    Raises:
        UserError: The recipe cannot be read or is not valid; the message names file, line and key.
    """
    return parse_recipe(*_read(recipe), overrides)


def parse_recipe(place: str, text: str, overrides: Sequence[str] = ()) -> Recipe:
    """Validate a recipe that was read.

    Args:
        place: Name of the file at the beginning of error messages.
        text: Its content.
        overrides: Values that replace those of the file: ``key.path=value`` each, the value in YAML.

    Raises:
        UserError: The recipe is not valid; the message names file, line and key.
    """
    try:
        tree = yaml.compose(text, Loader=_Loader)
        content = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise UserError(f"{place}:{mark.line + 1 if mark else 1}: not valid YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        raise UserError(f"{place}:{before.count(chr(10)) + 1}: not valid YAML: {error.reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"{place}: expected keys such as name, dataset and structural, found {type(content).__name__}")
    overridden = {_apply_override(content, override) for override in overrides}
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        path, message = first_mistake(error, content)
        key = ".".join(path)
        is_overridden = any(f"{key}.".startswith(f"{override}.") for override in overridden)
        line = None if is_overridden else _line_of(tree, path)
        raise UserError(f"{f'{place}:{line}' if line else place}: {message}") from None


class _Data(Section):
    dataset: Annotated[Dataset, Field(discriminator="kind")]


def folder_dataset(folder: Path, overrides: Sequence[str] = ()) -> Dataset:
    """Return the section ``dataset`` of a data folder.

    Args:
        folder: The folder, or its ``data.yaml``.
        overrides: Values of its keys, such as ``dataset.format=yolo``; other keys of a recipe are ignored.

    Raises:
        UserError: A key is unknown, or its value is not valid.
    """
    content: dict[str, Any] = {"dataset": {"kind": "folder", "root": str(folder)}}
    for override in overrides:
        _apply_override(content, override)
    content = {"dataset": content["dataset"]}
    try:
        return _Data.model_validate(content).dataset
    except ValidationError as error:
        raise UserError(f"{folder}: {first_mistake(error, content)[1]}") from None


def first_mistake(error: ValidationError, content: Any) -> tuple[list[str], str]:
    """Return the path of the first wrong key of a recipe, and the one-line error message that begins with it.

    Args:
        error: The error of validating ``content``.
        content: The recipe, as read from YAML.
    """
    # An unknown key comes first, since a misspelt key also makes the right one missing.
    first, *more = sorted(error.errors(include_url=False), key=lambda error: error["type"] != "extra_forbidden")
    path = _path_of(first, content)
    key = f"{'.'.join(path)}: " if path else ""
    return path, f"{key}{_explain(first)}{f' (and {len(more)} more)' if more else ''}"


def _read(recipe: str) -> tuple[str, str]:
    path = Path(recipe)
    try:
        if recipe in shipped_recipes():
            return recipe, (resources.files("smnas_optuna") / "studies" / f"{recipe}.yaml").read_text(encoding="utf-8")
        return recipe, path.read_text(encoding="utf-8")
    except FileNotFoundError:
        shipped = ", ".join(shipped_recipes())
        raise UserError(f"recipe {recipe!r}: no such file, and the shipped recipes are {shipped}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {recipe!r}: cannot be read: {error}") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but a key given twice in one mapping is an error; PyYAML uses the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    raise yaml.MarkedYAMLError(problem=f"key {key.value!r} given twice", problem_mark=key.start_mark)
                keys.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # such as the date 2024-13-45
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None


def _apply_override(content: dict[str, Any], override: str) -> str:
    """Set the value of an override in ``content``, and return its key."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"--set {override!r}: expected key.path=value")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise UserError(f"--set {override!r}: the value is not valid YAML") from None
    *parents, last = key.split(".")
    section = content
    for parent in parents:
        child = {} if section.get(parent) is None else section[parent]
        if not isinstance(child, dict):
            raise UserError(f"--set {override!r}: {parent} holds a value, not keys")
        section[parent] = dict(child)  # a copy, since an alias in the YAML may give another key the same mapping
        section = section[parent]
    section[last] = value
    return key


def _path_of(error: ErrorDetails, content: Any) -> list[str]:
    """Return the path of an error in ``content``, without the names that pydantic gives to members of unions."""
    path: list[str] = []
    node = content
    for part in error["loc"]:
        children = dict(enumerate(node)) if isinstance(node, list) else node
        if isinstance(children, dict) and part in children:
            node = children[part]
            path.append(str(part))
    return [*path, str(error["loc"][-1])] if error["type"] == "missing" else path


def _line_of(node: yaml.Node | None, path: list[str]) -> int | None:
    """Return the line, counted from 1, of the deepest key of ``path`` that the file has."""
    line: int | None = None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                return line
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = node.start_mark.line + 1
    return line


def _explain(error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        return f"unknown key; {f'did you mean {close[0]}?' if close else 'expected one of ' + ', '.join(known)}"
    if error["type"] == "missing":
        return "this key is missing"
    if error["type"].startswith("union_tag"):
        kinds = Recipe.model_json_schema()["properties"]["dataset"]["discriminator"]["mapping"]
        kind = f"kind {error['ctx']['tag']!r}" if "tag" in error["ctx"] else "no kind"
        return f"found {kind}, expected one of {', '.join(kinds)}"
    return explain(error)


def _known_keys(path: Sequence[int | str]) -> list[str]:
    """Return the keys of the recipe's section at ``path``."""
    schema = Recipe.model_json_schema()
    node: dict[str, Any] = schema
    for part in path:
        if "oneOf" in node:
            reference = node["discriminator"]["mapping"][part]
        elif "additionalProperties" in node and "properties" not in node:
            reference = node["additionalProperties"]["$ref"]
        else:
            child = node["properties"][str(part)]
            # The schema of a section that may be null is a choice of two.
            child = next((choice for choice in child.get("anyOf", ()) if "$ref" in choice), child)
            if "oneOf" in child or "$ref" not in child:
                node = child
                continue
            reference = child["$ref"]
        node = schema["$defs"][reference.removeprefix("#/$defs/")]
    return list(node["properties"])
