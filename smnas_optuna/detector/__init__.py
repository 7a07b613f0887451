"""Networks: built, costed, estimated, exported."""
