"""One search as a document: its sections, read from YAML."""
