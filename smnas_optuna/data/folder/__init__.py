"""Data folders: which format their labels have, their parts, and a validation part split off where there is none."""
