"""What of Optuna's interface was checked, compared with the Optuna that is installed."""

import inspect
from collections.abc import Collection
from typing import Any


def describe(owner: Any, name: str) -> str | None:
    """Return a member's name, with the names and defaults of its parameters if it has any; None where there is none."""
    member = getattr(owner, name, None)
    if member is None:
        return None
    if not callable(member):
        return name
    signature = inspect.signature(member)
    bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    return f"{name}{signature.replace(parameters=bare, return_annotation=signature.empty)}"


def public_names(owner: Any) -> list[str]:
    return [name for name in dir(owner) if not name.startswith("_")]


def differences(owner: Any, checked: str, names: Collection[str] = ()) -> list[str]:
    """Return a sentence for each difference.

    Args:
        owner: Class or module of Optuna.
        checked: Its members as :func:`describe` has them, one a line.
        names: Of all that shall be in ``checked``.
    """
    expected = {line.partition("(")[0]: line for line in map(str.strip, checked.strip().splitlines())}
    sentences = []
    for name in sorted({*expected, *names}):
        was, now = expected.get(name), describe(owner, name)
        if was is None:
            sentences.append(f"{owner.__name__}.{now} is new")
        elif now is None:
            sentences.append(f"{owner.__name__}.{was} is gone")
        elif was != now:
            sentences.append(f"{owner.__name__}.{was} is now {now}")
    return sentences
