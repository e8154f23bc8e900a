"""Outputs of masks: rows of tables, other tools' formats, overlays, scores."""
