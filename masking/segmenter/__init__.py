"""Segmenters: images encoded and prompts decoded in batches, by SAM or by `mini`."""
