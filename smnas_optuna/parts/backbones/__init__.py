"""Backbones: one file for each family; importing this package registers them."""

from smnas_optuna.parts.backbones import cspnext, mobilenet, resnet, searched, timm

__all__ = ["cspnext", "mobilenet", "resnet", "searched", "timm"]
