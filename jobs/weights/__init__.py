"""Weights by name, path or URL: downloaded to this node and read."""
