"""Kinds of random input, one reader each; `benchmarks.fuzz` runs them."""
