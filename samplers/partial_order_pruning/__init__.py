"""Partial order pruning: an Optuna sampler for spaces in which larger architectures are better but cost more."""

from .sampler import PartialOrderPruningSampler

__all__ = ["PartialOrderPruningSampler"]
