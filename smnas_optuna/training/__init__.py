"""One process trains, scores and times one architecture."""
