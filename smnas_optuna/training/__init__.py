"""Training processes: each trains, scores and times one architecture."""
