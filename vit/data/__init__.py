"""Labelled images: formats, decoding, caches, sets, and batches on their device."""
