"""Necks: one file for each family."""
