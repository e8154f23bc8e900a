"""Benchmarks of segmenters and of tracking."""
