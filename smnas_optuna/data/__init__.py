"""Data sets: reads, checks and converts them; no torch."""
