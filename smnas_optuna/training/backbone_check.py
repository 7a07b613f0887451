"""Checks that the backbones of a search can be built, which only the library that has them knows.

Called in processes of their own, since these libraries import torch.
"""

from collections.abc import Callable

from smnas_optuna.errors import UserError
from smnas_optuna.recipe.recipe import Recipe


def check_backbones(recipe: Recipe, _: Callable[[None], None] | None = None) -> None:
    """Check that all backbones of stage one's space exist, and have the levels that its necks and heads use.

    Raises:
        UserError: A backbone does not exist, or lacks a level.
    """
    space = recipe.structural.space
    for backbone in space.all_backbones:
        try:
            backbone.channels(space.backbone_levels)
        except ValueError as error:
            raise UserError(f"structural.space.backbones: {error}") from None
