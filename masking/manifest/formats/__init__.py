"""Formats of manifests: CSV, JSON lines and Parquet, each turned into rows as they are."""
