"""Benchmarks of training a Vision Transformer."""
