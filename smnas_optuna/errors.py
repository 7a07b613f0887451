"""Errors that several rooms know: a user's mistake as one line, and an evaluation that its surroundings ended."""

from pydantic_core import ErrorDetails


class UserError(Exception):
    """A mistake in the user's input or surroundings.

    Its text is one line that says what is wrong, where, and what was expected. Commands print that line and end
    with exit code 2; every other exception is a defect of ours and keeps its traceback.
    """


class EvaluationInterrupted(Exception):
    """An evaluation cannot go on for a reason outside of it, with which any other architecture would have failed."""


def explain(error: ErrorDetails) -> str:
    """Say what was found and what was expected, for one of the errors of a ``pydantic.ValidationError``.

    Recipes and command lines (Typer) are both checked by pydantic; its own text may begin with ``Value error,`` and
    names Python's types instead of YAML's.
    """
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    found, limits = error["input"], error.get("ctx", {})
    expected = {
        "too_short": f"at least {limits.get('min_length')} in the list",
        "string_pattern_mismatch": f"text of the form {limits.get('pattern')}",
        "path_type": "a path",
        "tuple_type": "a list",
        "model_type": "keys with values",
        "model_attributes_type": "keys with values",
        "invalid_key": "text as a key",
    }.get(error["type"])
    if expected is None:
        expected = error["msg"].removeprefix("Input should be ").partition(", unable to parse")[0]
    return f"expected {expected}" if isinstance(found, dict) else f"found {found!r}, expected {expected}"
