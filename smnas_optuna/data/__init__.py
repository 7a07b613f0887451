"""Data sets: found, read, checked and converted; knows no torch."""
