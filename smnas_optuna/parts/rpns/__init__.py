"""Region proposal networks: one file for each family; importing this package registers them."""

from smnas_optuna.parts.rpns import guided_anchoring, rpn

__all__ = ["guided_anchoring", "rpn"]
