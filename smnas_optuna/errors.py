"""Errors that the whole package uses: a user's mistake, and an evaluation that failed for reasons outside of it."""

from pydantic_core import ErrorDetails


class UserError(Exception):
    """A mistake in the user's input or environment.

    The message is one line that says what is wrong, where, and what was expected. Commands print it and exit with code
    2. Any other exception is a bug of this package, and its traceback is printed.
    """


class EvaluationInterrupted(Exception):
    """An evaluation cannot continue, and any other architecture would have failed for the same reason."""


def explain(error: ErrorDetails) -> str:
    """Return what was found and what was expected, for one error of a ``pydantic.ValidationError``.

    pydantic validates recipes and command lines (through Typer). Its own message may begin with ``Value error,`` and
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
