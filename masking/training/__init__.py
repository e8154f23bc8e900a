"""Training of a segmenter: images with masks, made samples, simulated clicks, a step."""
