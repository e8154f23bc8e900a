"""What masks are made into: rows of tables, other tools' formats, overlays, scores."""
