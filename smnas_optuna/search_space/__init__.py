"""Which combinations of parts exist, suggested define-by-run."""
