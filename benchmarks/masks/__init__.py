"""Benchmarks of `jobs.mask` and of the page of `jobs.prompt`."""
