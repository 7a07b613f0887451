"""Necks: one file for each family; importing this package registers them."""

from smnas_optuna.parts.necks import cspnext_pafpn, fpn, pafpn

__all__ = ["cspnext_pafpn", "fpn", "pafpn"]
