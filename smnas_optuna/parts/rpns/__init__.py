"""Region proposal networks: one file for each family."""
