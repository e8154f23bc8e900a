"""Annotations of other tools as rows of a manifest."""
