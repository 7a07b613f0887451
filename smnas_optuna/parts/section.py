"""A section of a recipe, and the numbers that it may have."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"found {value}, expected a number")
    return value


# Neither true nor .inf is a number; 1e-3, which YAML 1.1 takes for text, is.
PositiveInt = Annotated[int, Field(strict=True, gt=0)]
NonNegativeInt = Annotated[int, Field(strict=True, ge=0)]
PositiveFloat = Annotated[float, BeforeValidator(_no_boolean), Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, BeforeValidator(_no_boolean), Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A mapping of a recipe; a key that it does not have is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
