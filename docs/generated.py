"""Two directives whose text is made of the code itself, so that it cannot differ: ``command`` and ``recipe-keys``."""

import importlib
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import typer
from docutils import nodes
from docutils.statemachine import StringList
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from smnas_optuna.command_line import build_parser
from smnas_optuna.recipe.recipe import Recipe

_NAMES = {"integer": "whole number", "string": "text", "boolean": "true or false"}
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


class _Generated(SphinxDirective):
    """A directive whose content is written as reStructuredText, which autodoc's own docstrings are in too."""

    def _parsed(self, lines: Sequence[str]) -> list[nodes.Node]:
        container = nodes.container()
        self.state.nested_parse(StringList(lines, source=self.get_source_info()[0]), 0, container)
        return container.children


class CommandDirective(_Generated):
    """``.. command:: run_study``: what a command does, its arguments and options, as its ``--help`` tells them."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the command's description."""
        (name,) = self.arguments
        function = getattr(importlib.import_module(f"smnas_optuna.{name}"), name)
        command = build_parser(function)
        context = typer.Context(command, info_name=f"python -m smnas_optuna.{name}")
        records = [parameter.get_help_record(context) for parameter in command.params]
        lines = [*inspect.getdoc(function).splitlines(), ""]
        for usage, told in filter(None, records):
            lines += [f"``{usage}``", f"    {_escape(told)}", ""]
        return self._parsed(lines)


class RecipeKeysDirective(_Generated):
    """``.. recipe-keys::``: every key of a recipe with its type, default and meaning, section by section."""

    def run(self) -> list[nodes.Node]:
        """Return a table for each section."""
        lines: list[str] = []
        for section, places in _sections().items():
            schema = section.model_json_schema()
            meanings = _meanings(section)
            lines += [f".. rubric:: {' and '.join(f'``{place}``' if place else 'A recipe' for place in places)}", ""]
            lines += [*(inspect.getdoc(section) or "").partition("\n\n")[0].splitlines(), ""]
            lines += [".. list-table::", "   :header-rows: 1", "   :widths: 22 30 18 50", ""]
            lines += ["   * - key", "     - value", "     - default", "     - meaning"]
            for key, value in schema["properties"].items():
                needed = key in schema.get("required", ())
                default = "needed" if needed else _default(value.get("default"))
                lines += [f"   * - ``{key}``", f"     - {_type(value, schema)}", f"     - {default}"]
                lines += [f"     - {meanings.get(key, '')}"]
            lines.append("")
        return self._parsed(lines)


def _sections() -> dict[type[BaseModel], list[str]]:
    """Return the models that a recipe consists of, each with the key paths at which it stands."""
    found: dict[type[BaseModel], list[str]] = {}

    def enter(model: type[BaseModel], place: str) -> None:
        found.setdefault(model, []).append(place)
        for name, field in model.model_fields.items():
            for child in _models(field.annotation):
                enter(child, f"{place}.{name}".lstrip("."))

    enter(Recipe, "")
    return found


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _models(part)


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return what the docstrings of a model and of those that it derives from say of its keys."""
    meanings: dict[str, str] = {}
    for each in reversed(model.__mro__):
        arguments = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)*)", inspect.cleandoc(each.__doc__ or ""), re.MULTILINE)
        for key, text in re.findall(r"^ {4}(\w+): ((?:.|\n {5})*)", arguments[1] if arguments else "", re.MULTILINE):
            meanings[key] = " ".join(text.split())
    return meanings


def _type(value: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return a JSON schema's type as a reader's text."""
    if "$ref" in value or "discriminator" in value:
        return "keys, see below"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in value:
            return ", or ".join(_type(choice, schema) for choice in value[several])
    if "enum" in value or "const" in value:
        return ", ".join(f"``{choice}``" for choice in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        each = value.get("items") or (value.get("prefixItems") or [{}])[0]
        return f"list of: {_type(each, schema)}"
    if value.get("type") == "object":
        return f"mapping to: {_type(value['additionalProperties'], schema)}"
    if value.get("format") == "path":
        return "path"
    name = _NAMES.get(value.get("type", "text"), value.get("type", "text"))
    bounds = " and ".join(f"{text} {value[key]}" for key, text in _BOUNDS.items() if key in value)
    return f"{name} {bounds}".strip()


def _default(value: Any) -> str:
    if isinstance(value, dict):
        return "those below"
    if isinstance(value, list):
        return ", ".join(f"``{_scalar(item)}``" for item in value) or "none"
    return f"``{_scalar(value)}``"


def _scalar(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _escape(text: str) -> str:
    return re.sub(r"([*_`|\\])", r"\\\1", text)


def _no_signature_of_sections(
    app: Sphinx, what: str, name: str, obj: object, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Leave out the signature that pydantic makes, whose validators nobody can read: the table says it all."""
    is_section = inspect.isclass(obj) and issubclass(obj, BaseModel)
    return ("", None) if is_section else (signature, returned)


def _no_type_in_a_property(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Keep napoleon from taking what stands before a colon in a property's first line for its type."""
    if what == "property":
        lines.insert(0, "\\ ")  # nothing, in reStructuredText


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.connect("autodoc-process-signature", _no_signature_of_sections)
    app.connect("autodoc-process-docstring", _no_type_in_a_property, priority=400)
    app.add_directive("command", CommandDirective)
    app.add_directive("recipe-keys", RecipeKeysDirective)
    return {"parallel_read_safe": True}
