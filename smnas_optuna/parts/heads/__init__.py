"""Heads: one file for each family; importing this package registers them."""

from smnas_optuna.parts.heads import atss, fcos, gfl, rcnn, retinanet, rtmdet

__all__ = ["atss", "fcos", "gfl", "rcnn", "retinanet", "rtmdet"]
