"""Partial order pruning: an Optuna sampler for spaces in which bigger is better and dearer."""

from .sampler import PartialOrderPruningSampler

__all__ = ["PartialOrderPruningSampler"]
