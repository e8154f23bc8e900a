"""Weights by name, path or URL, on this node."""
