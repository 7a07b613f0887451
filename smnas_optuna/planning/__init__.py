"""Plans: which search suits some data, a machine and a budget, as written rules that make a recipe."""
