"""Segmenters: images encoded and prompts decoded in batches, by Meta's SAM or by `mini`."""
