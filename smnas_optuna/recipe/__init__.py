"""Recipes: YAML documents that describe a search."""
