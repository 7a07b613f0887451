"""Search spaces: which architectures a study may try, suggested define-by-run."""
