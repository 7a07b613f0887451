"""Base class of a recipe's sections, and the types of their numbers."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"found {value}, expected a number")
    return value


# Booleans and .inf are rejected; 1e-3, which YAML 1.1 reads as a string, is accepted.
PositiveInt = Annotated[int, Field(strict=True, gt=0)]
NonNegativeInt = Annotated[int, Field(strict=True, ge=0)]
PositiveFloat = Annotated[float, BeforeValidator(_no_boolean), Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, BeforeValidator(_no_boolean), Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A mapping in a recipe; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
