"""Heads: one file for each family."""
