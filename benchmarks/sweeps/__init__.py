"""Benchmarks of sweeps: search and early stopping on recorded curves, and a soak under kills."""
