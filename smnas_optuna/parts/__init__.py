"""The vocabulary: what a detector is assembled from, as values with a text; knows no torch."""
